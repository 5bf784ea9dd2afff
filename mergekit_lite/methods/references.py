"""The two rows that every merge is read against: the model before, and the experts it came from."""

from collections.abc import Mapping

from torch import Tensor

from mergekit_lite.methods.registry import Access, Merged, method
from mergekit_lite.weights import Pool


@method(title="Pre-trained", cite="", access=Access.NONE, smallest_pool=0, reference=True)
def pretrained(base: Mapping[str, Tensor], experts: Pool) -> Merged:
    """Return the base weights as they are: what zero-shot classification reaches without any expert."""
    return Merged(dict(base))


@method(title="Individual experts", cite="", access=Access.NONE, reference=True)
def individual(base: Mapping[str, Tensor], experts: Pool) -> Merged:
    """Return each expert for its own task and the base for a task without one: K models, not one merged model.

    Raises:
        KitError: an empty pool, or experts that do not fit the base.
    """
    return Merged(dict(base), own=experts)
