"""The data sets: Gaussian mixtures, MNIST, Fashion-MNIST, SVHN, CIFAR-10 (VGG16 features or pixels), and `.npz` files.

Samples are rows. The mean of the training rows is subtracted from all rows, which are then divided by one number, so
that the mean squared norm of a training row is 1. Its root is tau_0 of the paper.
    python data_prepare.py --dataset mnist [--dataset_path DIR]    fetches it, prints n, p, tau_0, spread of the norms

The code lives in `deq_enn/data/`.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

if __name__ == "__main__":  # first, so that --help and a bad flag do not wait for torch
    from deq_enn.data.command import main

    main(description=__doc__)
else:
    from deq_enn.data.datasets import Dataset, load_dataset, load_training
    from deq_enn.data.images import DataError, cifar10_images, mnist_images, svhn_images
    from deq_enn.data.mixtures import GMM_PRESETS, gaussian_mixture, mixed, two_class
    from deq_enn.data.vgg16 import VGG16, cifar10_features, load_vgg16

__all__ = [
    "GMM_PRESETS",
    "VGG16",
    "DataError",
    "Dataset",
    "cifar10_features",
    "cifar10_images",
    "gaussian_mixture",
    "load_dataset",
    "load_training",
    "load_vgg16",
    "mixed",
    "mnist_images",
    "svhn_images",
    "two_class",
]
