"""The blocks as modules, with their peers' constructors, parameter names and initialisation."""

from chattn_cuda.modules.squeeze_excite import SqueezeExcite

__all__ = ["SqueezeExcite"]
