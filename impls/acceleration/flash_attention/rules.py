"""The rules of a variant of attention: which keys a query sees, and how its scores are changed.

Five queries (rows) and seven keys; ■ is seen. Fewer queries than keys end with the keys (bottom right) or begin with
them (top left); engines disagree about which of the two "causal" means:

    causal, top left     causal, bottom right     the same with a window of 3
    ■ · · · · · ·        ■ ■ ■ · · · ·            ■ ■ ■ · · · ·
    ■ ■ · · · · ·        ■ ■ ■ ■ · · ·            · ■ ■ ■ · · ·
    ■ ■ ■ · · · ·        ■ ■ ■ ■ ■ · ·            · · ■ ■ ■ · ·
    ■ ■ ■ ■ · · ·        ■ ■ ■ ■ ■ ■ ·            · · · ■ ■ ■ ·
    ■ ■ ■ ■ ■ · ·        ■ ■ ■ ■ ■ ■ ■            · · · · ■ ■ ■

If there are more queries than keys, the first ones see nothing at the bottom right: their output and gradient are 0.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """``shift``: the key at which query 0 is."""

    causal: bool
    window: int  # so many keys, the query's own included; 0: all
    shift: int

    def seen(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions of queries [n] and keys [m] → [n, m]."""
        at = queries[:, None] + self.shift
        seen = torch.ones(len(queries), len(keys), dtype=torch.bool, device=keys.device)
        if self.causal:
            seen &= keys <= at
        return seen & (keys > at - self.window) if self.window else seen

    def hides(self, rows: slice, columns: slice) -> bool:
        """Whether no query of the tile sees any of its keys: such a tile is not computed (FlashAttention-2, §3.1)."""
        future = self.causal and columns.start >= rows.stop + self.shift
        past = bool(self.window) and columns.stop <= rows.start + self.shift - self.window + 1
        return future or past

    def shows(self, rows: slice, columns: slice) -> bool:
        """Whether every query of the tile sees all of its keys: such a tile needs no mask."""
        present = not self.causal or columns.stop <= rows.start + self.shift + 1
        recent = not self.window or columns.start > rows.stop - 1 + self.shift - self.window
        return present and recent

    def masked(self, s_ij: Tensor, rows: slice, columns: slice) -> Tensor:
        """A tile of scores [..., B_r, B_c], with −∞ where the query does not see the key."""
        if self.shows(rows, columns):
            return s_ij
        queries, keys = (torch.arange(x.start, x.stop, device=s_ij.device) for x in (rows, columns))
        return s_ij.masked_fill(~self.seen(queries, keys), -torch.inf)


class Rules(NamedTuple):
    causal: bool = False
    window: int = 0  # Beltagy et al. 2020, §3.1; of causal attention: the last keys before the query and its own
    bottom_right: bool = False
    softcap: float = 0.0  # scores are c · tanh(S / c) (Gemma 2, §2); 0: they are S

    @classmethod
    def of(cls, **variant: Any) -> "Rules":
        """Those of a variant, which may have other arguments as well."""
        return cls(**{name: variant[name] for name in cls._fields if name in variant})

    def mask(self, queries: int, keys: int) -> Mask:
        """For so many queries and keys."""
        return Mask(self.causal, self.window, keys - queries if self.bottom_right else 0)

    def capped(self, s: Tensor) -> Tensor:
        return self.softcap * (s / self.softcap).tanh() if self.softcap else s

    def slope(self, capped: Tensor) -> Tensor | float:
        """The derivative of a capped score by the score."""
        return 1 - (capped / self.softcap).square() if self.softcap else 1.0


PLAIN = Rules()
