"""The VGG16 of the CIFAR-10 experiments is here, with its features: `load_dataset("cifar10")` gives these.

scripts/pretrain_vgg.py trains the weights in pretrained/. An installed package has no such folder, and says what to
fetch. Features are kept beside the data that they are made of. torchvision is imported only where it is needed.
"""

import hashlib
import warnings
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from deq_enn.data.images import CIFAR10_MEAN, CIFAR10_STD, Arrays, DataError, cifar10_images, one_line
from deq_enn.utils.files import atomic_write

VGG16_WEIGHTS = Path(__file__).resolve().parents[2] / "pretrained" / "cifar10_vgg16.pth"  # where a checkout has them
FEATURE_CACHE = ".feature_cache"  # folder in that of the data
VGG16_WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG16(nn.Module):
    """VGG16 with batch norm for 32 x 32 images (Simonyan & Zisserman, 2015), head 512 -> 512 -> 256 -> 10.

    Takes uint8 images (n, 3, 32, 32) and normalises them itself; its logits are (n, 10).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        layers, channels = [], 3
        for width in VGG16_WIDTHS:
            if width == "M":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # 24 x 24 images too end as 1 x 1
                continue
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(dropout), nn.Linear(512, 256), nn.ReLU())
        self.readout = nn.Sequential(nn.Dropout(dropout), nn.Linear(256, 10))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer("mean", 255 * torch.tensor(CIFAR10_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(CIFAR10_STD).view(3, 1, 1), persistent=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the 256 values after the second hidden ReLU of the head, (n, 256)."""
        return self.hidden(self.convolutions((x - self.mean) / self.std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits (n, 10) of images x."""
        return self.readout(self.features(x))


def cifar10_features(
    path: Path | str, vgg_path: Path | str | None = None, device: torch.device | str = "cpu"
) -> Arrays:
    """Returns VGG16 features of CIFAR-10: X_train (50000, 256), y_train, X_test (10000, 256), y_test; not normalised.

    In evaluation mode, without augmentation, in float32; kept in <path>/.feature_cache under a key of weights and
    images.

    Parameters
    ----------
    path : see `cifar10_images`.
    vgg_path : weights of `VGG16`, by default those shipped in pretrained/; or "imagenet" for torchvision's VGG16, whose
        convolutions, on the 32 x 32 images as they are, give 512 features after the last pooling.

    Raises
    ------
    DataError : images or weights are missing or damaged.
    """
    return features_and_source(path, vgg_path, device)[0]


def features_and_source(
    path: Path | str, vgg_path: Path | str | None = None, device: torch.device | str = "cpu"
) -> tuple[Arrays, str]:
    """Returns the features as `cifar10_features` does, and a hash of the images and weights that they come from.

    Features of the same source differ in their last bits from one kind of processor to another.
    """
    net = _imagenet_vgg16() if vgg_path == "imagenet" else load_vgg16(vgg_path or _own_weights())
    data = cifar10_images(path)
    digest = hashlib.sha256(b"imagenet" if vgg_path == "imagenet" else b"cifar10")
    for tensor in (*net.state_dict().values(), data.train, data.test):
        digest.update(tensor.contiguous().numpy().data)
    source = digest.hexdigest()[:24]
    cache = Path(path) / FEATURE_CACHE / f"cifar10_vgg16_{source}.pt"
    features = _cached(cache, (len(data.train), len(data.test)))
    if features is None:
        features = _extract(net, data.train, device, "train"), _extract(net, data.test, device, "test")
        try:
            with atomic_write(cache) as file:
                torch.save(features, file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            warnings.warn(
                f"{cache}: the features could not be kept ({one_line(error)}); the next run computes them again"
            )
    return (features[0], data.train_labels, features[1], data.test_labels), source


def _own_weights() -> Path:
    """Returns the weights that a checkout has; DataError, with what to do, where this is none."""
    if not VGG16_WEIGHTS.is_file():
        raise DataError(
            f"{VGG16_WEIGHTS}: no VGG16 weights, which an installed package does not bring along: fetch "
            "pretrained/cifar10_vgg16.pth from the project's repository, or train them with scripts/pretrain_vgg.py, "
            "and give --vgg_path FILE; or take --vgg_path imagenet"
        )
    return VGG16_WEIGHTS


def _cached(cache: Path, sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns the features in the file, or None if there are none or the file is damaged."""
    if not cache.exists():
        return None
    try:
        features = torch.load(cache, weights_only=True)
        if tuple(len(X) for X in features) == sizes:
            return features
    except Exception as error:  # a damaged file raises many kinds
        warnings.warn(f"{cache}: damaged ({one_line(error)}); computing the features again")
    return None


@torch.no_grad()
def _extract(
    net: "VGG16 | _ImageNetVGG16", images: torch.Tensor, device: torch.device | str, part: str, batch_size: int = 250
) -> torch.Tensor:
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    batches = tqdm(images.split(batch_size), f"VGG16 features, {part}", disable=None, leave=False)
    return torch.cat(
        [net.features(x.to(device).contiguous(memory_format=torch.channels_last)).float().cpu() for x in batches]
    )


def load_vgg16(file: Path | str) -> VGG16:
    """Returns the network in evaluation mode, float32, with the weights of the file (a state_dict; float16 is fine).

    Raises
    ------
    DataError : the file is missing, damaged, or holds other weights.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(
            f"{file}: no VGG16 weights; train them with: python scripts/pretrain_vgg.py --output_path {file}"
        )
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # truncated, foreign or pickled files raise many kinds
        raise DataError(
            f"{file}: not a readable weight file ({one_line(error)[:80]}); it must be a state_dict saved by torch"
        ) from None
    net = VGG16()
    wanted = net.state_dict()
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(f"{file}: not a state_dict (a dictionary of tensors)")
    for key in sorted(wanted.keys() | state.keys()):
        if key not in state or key not in wanted:
            raise DataError(
                f"{file}: does not fit data_prepare.VGG16: "
                f"key {key} is {'missing' if key in wanted else 'not one of its'}"
                f" ({len(wanted.keys() - state.keys())} missing, "
                f"{len(state.keys() - wanted.keys())} unknown)"
            )
        if state[key].shape != wanted[key].shape:
            raise DataError(
                f"{file}: does not fit data_prepare.VGG16: {key} has shape {tuple(state[key].shape)}, "
                f"not {tuple(wanted[key].shape)}"
            )
    net.load_state_dict(state)
    return net.eval()


class _ImageNetVGG16(nn.Module):
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, convolutions: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.convolutions = convolutions
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolutions((x - self.mean) / self.std).flatten(1)


def _imagenet_vgg16() -> _ImageNetVGG16:
    from torchvision.models import VGG16_Weights, vgg16

    weights = VGG16_Weights.IMAGENET1K_V1
    try:
        net = vgg16(weights=weights)
    except Exception as error:  # no network, no space: torch.hub raises many kinds
        raise DataError(
            f"torchvision's VGG16 weights could not be downloaded ({one_line(error)}); leave --vgg_path "
            f"out to use the weights in {VGG16_WEIGHTS.parent}"
        ) from None
    return _ImageNetVGG16(net.features, weights.transforms().mean, weights.transforms().std)
