"""What does an object keep alive? For tests that nothing is left of what is over."""

import gc
import types

_SHARED = (type, types.ModuleType, types.FunctionType, types.CodeType, types.BuiltinFunctionType)


def reachable(root: object) -> list[object]:
    """Every object that an object keeps alive, code apart."""
    found: dict[int, object] = {}
    left = [root]
    while left:
        item = left.pop()
        if id(item) not in found and not isinstance(item, _SHARED):
            found[id(item)] = item
            left += gc.get_referents(item)
    return list(found.values())
