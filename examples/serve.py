"""Latency of a timm model at batch 1: eager, accelerated, compiled, and both.

    python examples/serve.py
    python examples/serve.py --compile                  # a minute: torch.compile takes its time
    python examples/serve.py --model seresnet50 --size 224 --pretrained

The variants are called in turn, so that what else the machine does hits all of them alike.
"""

import argparse
import copy
import sys
import time

import torch

import chattn_cuda

try:
    import timm
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed: pip install timm")

QUARTILES = torch.tensor([0.25, 0.5, 0.75])
PERCENTILES = torch.tensor([0.5, 0.9, 0.99])


def latency(model, image):
    """Milliseconds until the result of one call is there."""
    start = time.perf_counter()
    model(image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main(argv=None):
    """Measure, and print percentiles and what was gained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenetv3_large_100", help="of timm")
    parser.add_argument("--pretrained", action="store_true", help="timm downloads weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=224, help="of the image, in pixels")
    parser.add_argument("--calls", type=int, default=300, help="of each variant")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model = timm.create_model(args.model, pretrained=args.pretrained).eval()
    model = model.to(args.device, memory_format=torch.channels_last)
    image = torch.randn(1, 3, args.size, args.size, device=args.device)
    image = image.contiguous(memory_format=torch.channels_last)

    variants = {"eager": model, "accelerated": copy.deepcopy(model)}
    print(chattn_cuda.accelerate(variants["accelerated"]))
    if args.compile:
        for name, source in {"compiled": "eager", "both": "accelerated"}.items():
            variants[name] = torch.compile(copy.deepcopy(variants[source]))

    times = {name: [] for name in variants}
    with torch.inference_mode():
        expected = model(image)
        for name, variant in variants.items():
            for _ in range(10):  # compile, choose kernels, fill caches
                found = variant(image)
            error = (found - expected).norm() / expected.norm()
            print(f"{name}: differs from eager by {error:.0e}")
        for number in range(args.calls):
            for name in list(variants)[:: 1 if number % 2 else -1]:
                times[name].append(latency(variants[name], image))
    times = {name: torch.tensor(found) for name, found in times.items()}

    print(f"\n{args.model}, {args.size} x {args.size}, {args.device}, {args.calls} calls each")
    print(f"{'ms':12}{'p50':>9}{'p90':>9}{'p99':>9}")
    for name, found in times.items():
        print(f"{name:12}" + "".join(f"{ms:9.2f}" for ms in found.quantile(PERCENTILES)))
    for base, fast in {"eager": "accelerated", "compiled": "both"}.items():
        if base in times:
            low, median, high = (times[base] / times[fast]).quantile(QUARTILES).tolist()
            print(f"gained: {fast} is {median:.2f}x ({low:.2f} to {high:.2f}) as fast as {base}")


if __name__ == "__main__":
    main()
