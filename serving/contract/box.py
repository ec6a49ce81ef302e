"""A box around the thing in a photo."""

import math

from pydantic import Field

from serving.contract.files import FrozenModel

EDGE = 1e-6
"""How far a box may reach over an edge, since whoever drew it rounds; and how near to the edges it is the whole photo."""


class Box(FrozenModel):
    """A part of a photo as a person sees it (turned upright), in shares of its width and height from the left and from the top."""

    x: float = Field(ge=0, lt=1, allow_inf_nan=False)
    y: float = Field(ge=0, lt=1, allow_inf_nan=False)
    width: float = Field(gt=0, le=1, allow_inf_nan=False)
    height: float = Field(gt=0, le=1, allow_inf_nan=False)

    @property
    def whole(self) -> bool:
        """Whether it is the whole photo."""
        return max(self.x, self.y) <= EDGE and min(self.width, self.height) >= 1 - EDGE

    def outside(self) -> str:
        """What reaches over the photo's right or lower edge, as a sentence; "" where nothing does."""
        for start, length, far in (("x", "width", "right"), ("y", "height", "lower")):
            end = getattr(self, start) + getattr(self, length)
            if end > 1 + EDGE:
                return f"the box reaches over the photo's {far} edge: {start} + {length} is {end:.4g}, at most 1 is in the photo"
        return ""

    def slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of it in pixels (height, width, …): at least one of each."""
        return _slice(self.y, self.height, height), _slice(self.x, self.width, width)


def _slice(start: float, length: float, pixels: int) -> slice:
    first = min(math.floor(start * pixels + 0.5), pixels - 1)
    return slice(first, max(first + 1, min(pixels, math.floor((start + length) * pixels + 0.5))))
