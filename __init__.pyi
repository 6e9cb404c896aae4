# The names of the package, for type checkers and editors. At run time `__getattr__` of __init__.py imports them.
from . import assembly as assembly
from . import components as components
from . import ladder as ladder
from . import lens as lens
from . import sampling as sampling
from . import tokenizer as tokenizer
from . import training as training
from . import weights as weights
from .assembly import GPT2 as GPT2
from .assembly import PRESETS as PRESETS
from .assembly import GPT2Config as GPT2Config

__version__: str
__all__ = ["GPT2", "PRESETS", "GPT2Config", "__version__"]
