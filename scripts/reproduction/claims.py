"""The report's sections are here: what the paper claims of each, and which stages belong to it."""

if __name__ == "__main__":
    raise SystemExit("claims.py is a part of scripts/reproduce.py: run that")

# section, what the paper claims, its stages; the authors' slides show pictures without numbers
KERNELS = [
    (
        "Theorem 1: the conjugate kernel of a DEQ and its equivalent on a Gaussian mixture",
        "‖G − Ḡ‖ is O(n^(−1/2)). A figure of the slides shows the relative error ‖G − Ḡ‖/‖G‖ against n for DEQs of "
        "several activations at σ_a² = 0.2, on a two-class mixture with p/n = 0.8.",
        ["ck_gmm_matching"],
    ),
    (
        "Theorem 2: the neural tangent kernel of a DEQ and its equivalent on a Gaussian mixture",
        "‖K − K̄‖ is O(n^(−1/2)). The slides state the theorem; the authors' code has a script for its figure.",
        ["gmm_ntk_matching"],
    ),
    (
        "The same two kernels on images",
        "The authors' code has scripts for both kernels on MNIST; the slides claim nothing beyond mixtures.",
        ["ck_mnist_matching", "mnist_ntk_matching", "cifar10_matching"],
    ),
    (
        "Example 1: a tanh-DEQ and its hard-tanh network of one hidden layer",
        "‖G − Σ‖ is O(n^(−1/2)) once the activation of the explicit network is matched. A figure of the slides shows "
        "the two kernels to be close.",
        ["gmm_one_layer_matching", "mnist_one_layer_matching"],
    ),
    (
        "Example 2: a ReLU-DEQ and its leaky-ReLU network of two hidden layers",
        "‖G − Σ‖ is O(n^(−1/2)) once the activations of both layers are matched. A figure of the slides shows the two "
        "kernels to be close.",
        ["gmm_two_layer_relu_matching", "mnist_two_layer_matching"],
    ),
    (
        "Finite width",
        "No claim: the paper's kernels are those of infinite width. Ours shows how networks of width m approach them.",
        ["finite_width_kernels"],
    ),
    (
        "Any DEQ",
        "The slides match a tanh-DEQ and a ReLU-DEQ, and say that two hidden layers are needed in general. Ours "
        "matches every activation of the registry.",
        ["any_activation_matching", "matching_map"],
    ),
    (
        "Convolutional DEQs",
        "The paper's DEQs are fully connected. Ours has the kernels of convolutional ones, the closed form where "
        "images have many channels, and what few layers come near on real images.",
        ["conv_mixture", "conv_matching", "resolvent_network"],
    ),
]
TRAINING = [
    (
        "Every weight trained",
        "No claim: the authors' code trains the readout alone, which the conjugate kernel governs. Ours trains every "
        "weight by SGD on MNIST, where a network with the DEQ's tangent kernel should follow the DEQ's curve.",
        ["training_dynamics"],
    ),
    (
        "Positive concave DEQs",
        "Not of this paper but of Gabor, Piotrowski & Cavalcante, ICML 2024: with nonnegative weights and a concave "
        "activation there is one fixed point, which plain iteration reaches geometrically, however large they are.",
        ["pcdeq_convergence"],
    ),
    (
        "A trained DEQ and its own first steps",
        "No claim: the paper's equivalence is at initialisation. Ours trains every weight of DEQs, and stops "
        "them after k steps: as they are, distilled, and trained so from scratch.",
        ["steps"],
    ),
]
ACCURACY = (
    "A figure of the slides shows classification accuracies of DEQs and explicit networks trained with SGD; "
    "the authors' code has scripts for MNIST, Fashion-MNIST and CIFAR-10 (features of a VGG16). The take-away "
    "is that the equivalence makes implicit networks explicit and reduces the computation significantly. The "
    "sweeps on a Gaussian mixture, those with Adam, those of each network at its own rate, and the seeds are ours."
)
BOTH_RATES = "One learning rate for all, or each its own?"
PROTOCOLS = (
    "The authors' scripts have one learning rate for all networks of a data set. Ours train them also each at its own, "
    "the best on held-out training samples, and ask which claim survives which protocol: that a DEQ and its matched "
    "network are equal in accuracy, that the unmatched network is worse, and that the matched one is nearer to the DEQ."
)
CLAIMED = "A figure of accuracies; the equivalence makes implicit networks explicit, and their computation much less."
OURS = "No claim: ours."
