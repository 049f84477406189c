"""The command line can name these: one list of each kind, for the flags and for the modules that build it.

Nothing is imported here, so that every command answers --help and a bad flag without loading torch.
"""

DATASETS = ("gmm", "mnist", "fashion_mnist", "cifar10", "cifar10_images", "svhn", "npz")  # data.datasets.load_dataset
DATASET_TITLES = {
    "gmm": "Gaussian mixture",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar10_images": "CIFAR-10 images",
    "svhn": "SVHN",
}  # as tables and figures name them
PRESETS = ("mixed", "two_class")  # Gaussian mixtures, data.mixtures.GMM_PRESETS

# theory.activations.ACTIVATIONS
ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "tanh",
    "hardtanh",
    "erf",
    "sigmoid",
    "swish",
    "gelu",
    "elu",
    "selu",
    "softplus",
    "mish",
    "softsign",
    "sin",
)

MODELS = (
    "inn",
    "l_relu_enn",
    "relu_enn",
    "tanh_inn",
    "h_tanh_enn",
    "tanh_enn",
)  # networks of the paper, networks.build.build_model
GENERAL = ("deq", "matched_enn", "unmatched_enn")  # networks of any activation, by the same
DEQS = ("inn", "tanh_inn", "deq", "conv_deq")  # those of all that have an equilibrium of the paper's form
UNMATCHED = {"relu_enn": 2, "tanh_enn": 1, "unmatched_enn": 2}  # depth as published, of those whose depth is free
FAMILIES = ("auto", "l_relu", "hard_tanh", "hermite", "piecewise", "own")  # layers of a match, matching.families.match

CONVOLUTIONAL = ("conv_deq", "matched_conv_enn", "plain_conv")  # networks of images, networks.conv_enn.build_conv
DEPTHS = UNMATCHED | {"plain_conv": 2}  # depth by default, of all networks whose depth is free
IMAGE_DATASETS = ("mnist", "fashion_mnist", "cifar10_images", "svhn", "npz")  # those whose rows are images, or may be
PADDINGS = ("zero", "circular")  # what lies around an image, theory.equilibrium
READOUTS = ("flatten", "pool")  # what a readout sees of the last feature maps: every pixel, or their mean

PCDEQS = (
    "linear_pcdeq_1",
    "linear_pcdeq_2",
    "single_conv_pcdeq_1",
    "single_conv_pcdeq_2",
    "multi_conv_pcdeq_1",
    "multi_conv_pcdeq_2",
)  # positive concave DEQs, networks.pcdeq.build_pcdeq
PCDEQ_ACTIVATIONS = {"1": ("tanh", "softsign", "relu6"), "2": ("sigmoid",)}  # by kind, pcDEQ-1 and pcDEQ-2


def counted(number: int, noun: str) -> str:
    """Returns a number of things as text: 1 epoch, 2 epochs."""
    return f"{number} {noun}" + "s" * (number != 1)
