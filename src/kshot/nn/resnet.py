"""The residual networks of the few-shot literature, with their normalisation named: ResNet-12 and WRN-28-10.

ResNet-12 is that of TADAM and MetaOptNet (Lee et al., CVPR 2019, arXiv:1904.03758) without its DropBlock; WRN-28-10 is
Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146, without dropout. Both end in an average over the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kshot.core.errors import UserError
from kshot.nn.norm import Norm


class Conv(nn.Conv2d):
    """A convolution without bias that takes images of several tasks, too.

    Args:
        n_in: channels in.
        n_out: channels out.
        side: of the kernel, 1 or 3; the map keeps its size but for the stride.
        stride: 1 or 2.
    """

    def __init__(self, n_in: int, n_out: int, side: int, stride: int = 1) -> None:
        super().__init__(n_in, n_out, side, stride=stride, padding=side // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        """Convolve.

        Args:
            input: (..., C, H, W) with one leading axis or more.

        Returns:
            (..., n_out, H / stride, W / stride).
        """
        return super().forward(input.flatten(0, -4)).unflatten(0, input.shape[:-3])


class Block12(nn.Module):
    """Three convolutions, a shortcut, and a halving of the side by max-pooling.

    Args:
        n_in: channels in.
        n_out: channels out.
        normalisation: see ``kshot.nn.norm``.
    """

    def __init__(self, n_in: int, n_out: int, normalisation: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv(i, n_out, 3) for i in (n_in, n_out, n_out))
        self.norms = nn.ModuleList(Norm(n_out, normalisation) for _ in range(3))
        self.shortcut, self.shortcut_norm = Conv(n_in, n_out, 1), Norm(n_out, normalisation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (..., C, H, W).

        Returns:
            (..., n_out, H // 2, W // 2).
        """
        aside = self.shortcut_norm(self.shortcut(x))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            x = F.leaky_relu(x, 0.1) if i < 2 else x
        x = F.leaky_relu(x + aside, 0.1)
        return F.max_pool2d(x.flatten(0, -4), 2).unflatten(0, x.shape[:-3])


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions, and an average: (N, C, H, H) to (N, 640).

    Args:
        in_channels: channels of the images.
        image_size: side of the square images in pixels, at least 16.
        normalisation: see ``kshot.nn.norm``.
        widths: channels of the blocks.

    Attributes:
        takes_tasks: a leading task axis is allowed.
        n_features: D, the last width.

    Raises:
        UserError: images too small.
    """

    takes_tasks = True

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 84,
        normalisation: str = "running",
        widths: Sequence[int] = (64, 160, 320, 640),
    ) -> None:
        super().__init__()
        least = 2 ** len(widths)
        if image_size < least:
            raise UserError(
                f"ResNet12 halves the image {len(widths)} times: expected a side of at least {least} pixels, "
                f"got {image_size}; enlarge the images, or take another backbone"
            )
        ends = [in_channels, *widths]
        self.blocks = nn.Sequential(*(Block12(i, o, normalisation) for i, o in zip(ends, widths, strict=False)))
        self.n_features = ends[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Args:
            x: (N, C, H, H), or (T, N, C, H, H) for T tasks.

        Returns:
            (N, D), or (T, N, D).
        """
        return self.blocks(x).mean((-2, -1))


class WideBlock(nn.Module):
    """Two convolutions, each after its normalisation and ReLU, and a shortcut.

    Args:
        n_in: channels in.
        n_out: channels out.
        stride: of the first convolution.
        normalisation: see ``kshot.nn.norm``.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, normalisation: str) -> None:
        super().__init__()
        self.first_norm, self.first = Norm(n_in, normalisation), Conv(n_in, n_out, 3, stride)
        self.second_norm, self.second = Norm(n_out, normalisation), Conv(n_out, n_out, 3)
        self.shortcut = Conv(n_in, n_out, 1, stride) if n_in != n_out or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (..., C, H, W).

        Returns:
            (..., n_out, H / stride, W / stride).
        """
        before = F.relu(self.first_norm(x))
        aside = x if self.shortcut is None else self.shortcut(before)
        return self.second(F.relu(self.second_norm(self.first(before)))) + aside


class WideResNet(nn.Module):
    """A wide residual network and an average: (N, C, H, H) to (N, 640) for WRN-28-10.

    Args:
        in_channels: channels of the images.
        normalisation: see ``kshot.nn.norm``.
        depth: layers, 6 n + 4; 28.
        width: factor of the channels; 10.

    Attributes:
        takes_tasks: a leading task axis is allowed.
        n_features: D, 64 * width.

    Raises:
        UserError: a depth that is not 6 n + 4.
    """

    takes_tasks = True

    def __init__(self, in_channels: int = 3, normalisation: str = "running", depth: int = 28, width: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"expected a depth of 6 n + 4, such as 28, got {depth}")
        channels, blocks = 16, list[nn.Module]()
        self.stem = Conv(in_channels, channels, 3)
        for group, base in enumerate((16, 32, 64)):
            for i in range((depth - 4) // 6):
                stride = 2 if group and not i else 1
                blocks.append(WideBlock(channels, base * width, stride, normalisation))
                channels = base * width
        self.blocks, self.norm = nn.Sequential(*blocks), Norm(channels, normalisation)
        self.n_features = channels

    def forward(self, x: Tensor) -> Tensor:
        """Embed images.

        Args:
            x: (N, C, H, H), or (T, N, C, H, H) for T tasks.

        Returns:
            (N, D), or (T, N, D).
        """
        return F.relu(self.norm(self.blocks(self.stem(x)))).mean((-2, -1))
