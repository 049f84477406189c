"""What can be named on the command line: one list of each kind, for the flags and for the modules that build it.

Nothing is imported here, so that main.py answers --help and a bad flag without loading torch.
"""

DATASETS = ("gmm", "mnist", "fashion_mnist", "cifar10", "cifar10_images", "svhn", "npz")  # data_prepare.load_dataset
PRESETS = ("mixed", "two_class")  # the Gaussian mixtures, data_prepare.GMM_PRESETS

# gaussian_integration.ACTIVATIONS
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

MODELS = ("inn", "l_relu_enn", "relu_enn", "tanh_inn", "h_tanh_enn", "tanh_enn")  # model.build_model
GENERAL = ("deq", "matched_enn", "unmatched_enn")  # model.build_model, of any activation
DEQS = ("inn", "tanh_inn", "deq")  # those of the two that have an equilibrium
UNMATCHED = {"relu_enn": 2, "tanh_enn": 1, "unmatched_enn": 2}  # those of a depth to choose; as published
FAMILIES = ("auto", "l_relu", "hard_tanh", "hermite", "piecewise")  # the layers of a match, matching.match

PCDEQS = (
    "linear_pcdeq_1",
    "linear_pcdeq_2",
    "single_conv_pcdeq_1",
    "single_conv_pcdeq_2",
    "multi_conv_pcdeq_1",
    "multi_conv_pcdeq_2",
)  # pcdeq.build_pcdeq
PCDEQ_ACTIVATIONS = {"1": ("tanh", "softsign", "relu6"), "2": ("sigmoid",)}  # of pcDEQ-1 and pcDEQ-2, pcdeq.CONCAVE
