"""The data sets of the experiments: Gaussian mixtures, MNIST, Fashion-MNIST, SVHN, CIFAR-10 (as VGG16 features or as
pixels), and `.npz` files of one's own.

Samples are rows. They are normalised by the mean and the scale of the training set, so that the mean squared norm of
its rows is 1, which is tau_0 of the paper. The code lives in `deq_enn/data/`.
"""

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
