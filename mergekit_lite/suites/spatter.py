"""Spatter: drops of water or mud on the lens, the one corruption of the seven that takes more than a few lines.

The source computes it with OpenCV and scikit-image. Here NumPy and SciPy do their operations on one channel (H, W),
with OpenCV's rounding and borders, so that neither library is needed. The two averages are written out: SciPy sums in
another order, and a last digit decides where fractions are cut off.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

Channel = NDArray[np.float64]

WATER = np.array([175.0, 238.0, 238.0])  # pale turquoise, RGB
MUD = np.array([63.0, 42.0, 20.0])
EMBOSS = np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])  # lit from the lower right
FAR = 20  # pixels: distances beyond this count as this


def spattered(
    image: NDArray[np.uint8],
    rng: np.random.Generator,
    loc: float,
    scale: float,
    sigma: float,
    threshold: float,
    intensity: float,
    mud: float,
) -> Channel:
    """Return `image` (3, H, W), 0 to 255, behind drops: where smoothed noise N(loc, scale) is above `threshold`."""
    liquid = gaussian_blur(rng.normal(loc, scale, image.shape[1:]), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = gaussian_blur((liquid > threshold).astype(np.float64), intensity)
        cover[cover < 0.8] = 0
        return image * (1 - cover) + MUD[:, None, None] * cover
    shine = _relief(liquid)
    if shine.max() > 0:  # a small image may stay dry
        shine *= intensity / shine.max()
    return image + WATER[:, None, None] * shine


def _relief(liquid: Channel) -> Channel:
    """Return how bright the water is: its thickness times an embossed map of the distance to the drops' edges."""
    water = np.floor(liquid * 255)
    distance = np.floor(box_blur(distances(canny(water, 50, 150))))
    embossed = np.clip(emboss(equalised(distance)), 0, 255)
    return water * box_blur(embossed)


def gaussian_blur(channel: Channel, sigma: float) -> Channel:
    """Return scikit-image's `filters.gaussian` of (H, W): cut off at 4 sigma, the border pixels repeated."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for _ in range(2):  # along columns, then along rows
        padded = np.pad(channel, ((reach, reach), (0, 0)), mode="edge")
        channel = (sliding_window_view(padded, len(kernel), axis=0) @ kernel).T
    return channel


def canny(channel: Channel, low: float, high: float) -> NDArray[np.bool_]:
    """Return the edges (H, W) of a picture with values 0 to 255 as OpenCV's Canny finds them.

    Where the gradient (Sobel, length |x| + |y|) is a ridge and above `low`, if it is joined to a place above `high`.
    """
    x, y = (ndimage.sobel(channel, axis, mode="nearest") for axis in (1, 0))
    length = abs(x) + abs(y)
    around = sliding_window_view(np.pad(length, 1), (3, 3))  # outside of the picture there is no gradient

    def ridge(row: int, column: int, *, strict: bool) -> NDArray[np.bool_]:
        before, after = around[..., 1 - row, 1 - column], around[..., 1 + row, 1 + column]
        return (length > before) & ((length > after) if strict else (length >= after))

    steep = np.tan(np.pi / 8)
    across, down = abs(y) < steep * abs(x), abs(x) < steep * abs(y)
    falling, rising = ridge(1, 1, strict=True), ridge(1, -1, strict=True)
    diagonal = np.where((x < 0) == (y < 0), falling, rising)
    thin = np.where(across, ridge(0, 1, strict=False), np.where(down, ridge(1, 0, strict=False), diagonal))
    weak, edges = thin & (length > low), thin & (length > high)
    return np.asarray(ndimage.binary_propagation(edges, np.ones((3, 3)), mask=weak))


def distances(edges: NDArray[np.bool_]) -> Channel:
    """Return the Euclidean distance in pixels of each place (H, W) to the nearest edge, at most `FAR`."""
    if not edges.any():  # to what SciPy would measure then is not defined
        return np.full(edges.shape, float(FAR))
    return np.minimum(ndimage.distance_transform_edt(~edges), FAR)


def emboss(channel: Channel) -> Channel:
    """Return how steeply the relief (H, W) rises towards the light."""
    return np.asarray(ndimage.correlate(channel, EMBOSS, mode="mirror"))


def equalised(channel: Channel) -> Channel:
    """Return whole numbers 0 to 255 (H, W) spread so that each range of values is taken by as many pixels."""
    below = np.bincount(channel.astype(np.int64).ravel(), minlength=256).cumsum()
    lowest = below[below > 0][0]
    if lowest == channel.size:  # one value everywhere
        return channel
    spread = np.rint(255 * (below - lowest).clip(0) / (channel.size - lowest))
    return spread[channel.astype(np.int64)]


def box_blur(channel: Channel) -> Channel:
    """Return the mean (H, W) over 3 x 3 pixels, the picture mirrored at its border."""
    columns = np.asfortranarray(channel)  # in which order the nine are added depends on it, and on that the last digit
    windows = sliding_window_view(np.pad(columns, 1, mode="reflect"), (3, 3))
    return np.asarray(np.einsum("hwij,ij->hw", windows, np.full((3, 3), 1 / 9)))
