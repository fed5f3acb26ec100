"""PyTorch's tools on accelerated models: `features` makes docs/compatibility.md of the tests."""
