"""Tracing: a forward pass of a torch module as a trace."""

from .examples import MODES, Example, check_methods, check_modes, examples_of, from_text, to_text
from .export import calls_agree, fake_run, memos, real_run, trace_example, trace_examples, trace_module
from .footprint import Observer
from .modules import like, repeats
from .parts import node_name, parts_agree, read_by, seen
from .recording import python_functions_open
from .splice import spliced
from .wrappers import forget_compiled, is_compiled, unwrapped

__all__ = [
    "MODES",
    "Example",
    "Observer",
    "calls_agree",
    "check_methods",
    "check_modes",
    "examples_of",
    "fake_run",
    "forget_compiled",
    "from_text",
    "is_compiled",
    "like",
    "memos",
    "node_name",
    "parts_agree",
    "python_functions_open",
    "read_by",
    "real_run",
    "repeats",
    "seen",
    "spliced",
    "to_text",
    "trace_example",
    "trace_examples",
    "trace_module",
    "unwrapped",
]
