"""Trains the CIFAR-10 VGG16 whose features `load_dataset("cifar10")` gives, and writes its weights as float16.

    python scripts/pretrain_vgg.py --dataset_path data --epoch 16 --seed 0
    python scripts/pretrain_vgg.py --dataset_path data --init FILE --epoch 16 --small_crops 0 --cutout 10 --seed 1

The second is a warm restart (Loshchilov & Hutter, 2017): the schedule once more, from the weights in FILE.
SGD with Nesterov momentum under a one-cycle schedule (Smith & Topin, 2018), label smoothing, random crops, flips and
cutout (DeVries & Taylor, 2017); bfloat16 autocast and channels-last, which halve the time of an epoch on a CPU that has
bfloat16.
The test images are looked at once, at the end, with the weights as written and in float32. With --val, some training
images are held out, and the epoch with the best accuracy on them is written, or the weights of --init, where no epoch
is better: which epoch and which restart to keep is then decided without the test images. Without it, the last epoch is.
After each epoch --checkpoint holds all that --resume needs to go on as if nothing had happened.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import argparse
import hashlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.data.images import CIFAR10_MEAN, cifar10_images

# isort: split
# what is missing is said in one line only once deq_enn was imported
import torch
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from deq_enn.data.vgg16 import VGG16, load_vgg16
from deq_enn.utils.arguments import OneLineParser, natural_int, old_spelling, positive_int
from deq_enn.utils.devices import get_device
from deq_enn.utils.files import atomic_write
from deq_enn.utils.random import generator

PAD = 4  # pixels by which a random crop may be shifted, either way
SMOOTHING = 0.1  # share of each label that is spread over all classes


def augment(images, mirrored, size, draws, cutout=0):
    """Crops near the centre of images (b, 40, 40, 3), mirrored where (b,) says so: (b, 3, size, size), channels-last.

    Each has a square of `cutout` pixels a side about a random pixel in the mean colour, as far as it lies inside.
    """
    b = len(images)
    top, left = torch.randint(2 * PAD + 1, (2, b, 1), generator=draws) + (32 - size) // 2
    pixel = torch.arange(size)
    columns = torch.where(mirrored[:, None], size - 1 - pixel, pixel) + left
    rows = pixel + top
    crops = images[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if cutout:
        first = torch.randint(size, (2, b, 1), generator=draws) - cutout // 2
        down, across = (pixel >= first) & (pixel < first + cutout)
        mean = torch.tensor([round(255 * m) for m in CIFAR10_MEAN], dtype=crops.dtype)
        crops[down[:, :, None] & across[:, None, :]] = mean
    return crops.permute(0, 3, 1, 2)


def one_cycle(step, steps, warmup):
    """Factor of the peak learning rate: up in a line for that share of the steps, then down in a line to nearly 0."""
    warm = warmup * steps
    return min((step + 1) / (warm + 1), (steps - step) / max(steps - warm, 1))


@torch.no_grad()
def accuracy(net, images, labels, batch_size=500):
    """Share of all images that the net, in evaluation mode and float32, labels correctly."""
    net.eval()
    device = next(net.parameters()).device
    right = 0
    for x, y in tqdm(
        zip(images.split(batch_size), labels.split(batch_size)),
        "accuracy",
        -(-len(images) // batch_size),
        disable=None,
        leave=False,
    ):
        right += (net(x.to(device)).argmax(1).cpu() == y).sum().item()
    return right / len(images)


def held_out(labels, count):
    """Which of the labels (n,) are the validation set, (n,) bool: `count`, as evenly over the classes as it goes.

    The same for every seed of the training: a warm restart must not train on what it is judged by.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order, classes = torch.randperm(len(labels), generator=generator("validation")), labels.unique()
    for index, label in enumerate(classes):
        rows, share = order[labels[order] == label], count // len(classes) + (index < count % len(classes))
        if share >= len(rows):
            raise ValueError(f"--val {count} leaves no training image of class {label}, which has {len(rows)}")
        chosen[rows[:share]] = True
    return chosen


# flags that a checkpoint must have been written with for --resume to go on from it
SETTINGS = ("seed", "epochs", "batch_size", "lr", "warmup", "weight_decay", "dropout", "small_crops", "cutout")


def settings_of(args):
    """Returns what determines the weights, as a checkpoint holds it."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["init"] = hashlib.sha256(Path(args.init).read_bytes()).hexdigest() if args.init else ""
    if args.val:  # checkpoints from before there was one have no such setting
        settings["val"] = args.val
    return settings


class Training:
    """A network in training: its images, its optimizer and its random draws, an epoch at a time, with a checkpoint.

    best : accuracy, epoch and weights of the best epoch on the validation set.
    """

    def __init__(self, args):
        self.args, self.device = args, get_device(args.device)
        if not 0 <= args.cutout <= 32:
            raise ValueError(f"--cutout must be 0 to 32 pixels, got {args.cutout}")
        start = load_vgg16(args.init).state_dict() if args.init else None  # before the images, which take a while
        self.data = cifar10_images(args.dataset_path)
        validation = held_out(self.data.train_labels, args.val)
        self.validation = self.data.train[validation], self.data.train_labels[validation]
        images, self.labels = self.data.train[~validation], self.data.train_labels[~validation]
        if args.batch_size > len(images):
            raise ValueError(f"--batch_size {args.batch_size} is more than the {len(images)} training images")
        torch.manual_seed(args.seed)  # initial weights and dropout
        self.draws = generator("vgg", args.seed)  # order, crops and flips
        self.net = VGG16(args.dropout)
        if start:
            self.net.load_state_dict(start)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
        )
        self.checkpoint, self.settings = Path(args.checkpoint), settings_of(args)
        self.done, self.best = 0, {"accuracy": -1.0}
        # half of the images are mirrored in even epochs and the others in odd ones, so that two epochs show both sides
        # of each; worth more in a short training than fresh coin tosses (Jordan, arXiv 2404.00498)
        self.mirrored = torch.rand(len(images), generator=generator("mirror", args.seed)) < 0.5
        self.images = pad(images, (PAD,) * 4, mode="reflect").permute(0, 2, 3, 1).contiguous()
        self.per_epoch = len(images) // args.batch_size  # the incomplete batch is left to another epoch's order

    def validate(self, epoch):
        """Returns the accuracy on the validation set, and keeps the weights where none before had a better one."""
        reached = accuracy(self.net, *self.validation)
        if reached > self.best["accuracy"]:
            net = {name: value.cpu().clone() for name, value in self.net.state_dict().items()}
            self.best = {"accuracy": reached, "epoch": epoch, "net": net}
        return reached

    def restore(self):
        """Goes on from the checkpoint; ValueError where it is damaged or was written with other settings."""
        try:
            state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        except Exception as error:  # a damaged file raises many kinds
            raise ValueError(
                f"{self.checkpoint}: damaged ({type(error).__name__}); delete it, or run without --resume"
            ) from None
        if state["settings"] != self.settings:
            raise ValueError(
                f"{self.checkpoint}: was written with {state['settings']}; resume with the same, or without --resume"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.draws.set_state(state["draws"])
        self.done, self.best = state["epoch"], state.get("best", self.best)

    def save(self):
        """Writes the checkpoint of the epochs that are done."""
        state = {
            "settings": self.settings,
            "epoch": self.done,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "draws": self.draws.get_state(),
        }
        if self.args.val:
            state["best"] = self.best
        with atomic_write(self.checkpoint) as file:
            torch.save(state, file)

    def epoch(self):
        """Trains for one epoch; returns the mean loss and the accuracy on the images as they were seen."""
        args, epoch, per_epoch = self.args, self.done, self.per_epoch
        self.net.train()
        size = 24 if epoch < args.small_crops * args.epochs else 32
        total, right, steps = 0.0, 0, args.epochs * per_epoch
        order = torch.randperm(len(self.images), generator=self.draws)[: per_epoch * args.batch_size]
        batches = tqdm(order.split(args.batch_size), f"epoch {epoch + 1}/{args.epochs}", disable=None, leave=False)
        for i, index in enumerate(batches):
            self.optimizer.param_groups[0]["lr"] = args.lr * one_cycle(epoch * per_epoch + i, steps, args.warmup)
            mirrored = self.mirrored[index] ^ bool(epoch % 2)
            x = augment(self.images[index], mirrored, size, self.draws, args.cutout).to(self.device)
            y = self.labels[index].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                logits = self.net(x)
            loss = cross_entropy(logits.float(), y, label_smoothing=SMOOTHING)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            right += (logits.argmax(1) == y).sum().item()
        if not total < float("inf"):
            raise ValueError(f"the loss became {total / per_epoch} in epoch {epoch + 1}; take a smaller --lr")
        self.done += 1
        return total / per_epoch, right / len(order)

    def write(self):
        """Writes the weights as float16, and returns the test accuracy of what was written."""
        state = {name: v.half() if v.is_floating_point() else v for name, v in self.net.state_dict().items()}
        with atomic_write(self.args.output_path) as file:
            torch.save(state, file)
        self.net.load_state_dict(torch.load(self.args.output_path, weights_only=True, map_location="cpu"))
        return accuracy(self.net, self.data.test, self.data.test_labels)


def train(args):
    """Trains for the epochs that are left, each with its line and its checkpoint, and writes the weights."""
    training = Training(args)
    if args.resume and training.checkpoint.exists():
        training.restore()
    elif args.val and args.init:
        print(f"{args.init}: validation accuracy {training.validate(0):.4f}", flush=True)
    while training.done < args.epochs:
        began = time.time()
        loss, seen = training.epoch()
        told = f"epoch {training.done}/{args.epochs}: loss {loss:.4f}, training accuracy {seen:.4f}, "
        if args.val:
            told += f"validation accuracy {training.validate(training.done):.4f}, "
        training.save()
        print(f"{told}{time.time() - began:.0f} s", flush=True)
    if args.val:
        best = training.best
        training.net.load_state_dict(best["net"])
        kept = f"epoch {best['epoch']}" if best["epoch"] else f"{args.init}: no epoch is better"
        print(f"kept by validation accuracy {best['accuracy']:.4f} on {args.val} images: {kept}", flush=True)
    reached = training.write()
    print(f"{args.output_path}: test accuracy {reached:.4f} on {len(training.data.test)} images")


def share(text):
    """Reads a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def main(argv=None):
    """Trains as the flags say; what is wrong is one line, with status 2."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "--dataset_path", default="data", help="holds cifar10/{train,test}/<class>/ or torchvision's archive"
    )
    parser.add_argument("--output_path", default="pretrained/cifar10_vgg16.pth", help="file of the weights")
    old_spelling(parser, "--output", "--output_path")
    parser.add_argument("--checkpoint", default="checkpoints/cifar10_vgg16.ckpt")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint if it is there")
    parser.add_argument("--init", metavar="FILE", help="weights to start from (default: random ones)")
    parser.add_argument("--epoch", dest="epochs", metavar="E", type=positive_int, default=16)
    old_spelling(parser, "--epochs", "--epoch")
    parser.add_argument("--batch_size", type=positive_int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate")
    parser.add_argument(
        "--warmup",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="of the steps, the first ones, in which the learning rate rises (default: 0.2)",
    )
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    parser.add_argument("--dropout", type=float, default=0.2, help="in the head")
    parser.add_argument(
        "--small_crops",
        type=share,
        default=0.75,
        metavar="SHARE",
        help="of the epochs, the first ones, that see 24 x 24 pixels, at two thirds of the cost (default: 0.75)",
    )
    parser.add_argument(
        "--cutout",
        type=int,
        default=0,
        metavar="PIXELS",
        help="side of the square that is taken out of each training image (default: 0)",
    )
    parser.add_argument(
        "--val",
        type=natural_int,
        default=0,
        metavar="IMAGES",
        help="training images, evenly over the classes, that are held out to choose the epoch that is "
        "written, such as 5000 (default: 0, the last epoch is written)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    args = parser.parse_args(argv)
    try:
        train(args)
    except (ValueError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    main()
