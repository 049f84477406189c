"""Trains the CIFAR-10 VGG16 whose features data_prepare.py uses, and writes its weights as float16.

    python scripts/pretrain_vgg.py --dataset_path data --epochs 16 --seed 0
    python scripts/pretrain_vgg.py --dataset_path data --init FILE --epochs 16 --small_crops 0 --cutout 10 --seed 1

The second is a warm restart (Loshchilov & Hutter, 2017): the schedule once more, from the weights in FILE.
SGD with Nesterov momentum under a one-cycle schedule (Smith & Topin, 2018), label smoothing, random crops, flips and
cutout (DeVries & Taylor, 2017); bfloat16 autocast and channels-last, which halve the time of an epoch on a CPU that has
bfloat16.
The test images are looked at once, at the end, with the weights as written and in float32. With --val, some training
images are held out, and the epoch with the best accuracy on them is written, or the weights of --init, where no epoch
is better: which epoch and which restart to keep is then decided without the test images. Without it, the last epoch is.
After each epoch --checkpoint holds all that --resume needs to go on as if nothing had happened.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from deq_enn.data.images import CIFAR10_MEAN, cifar10_images
from deq_enn.data.vgg16 import VGG16, load_vgg16
from deq_enn.utils.arguments import natural_int, positive_int
from deq_enn.utils.devices import get_device
from deq_enn.utils.files import atomic_write
from deq_enn.utils.random import generator

PAD = 4  # pixels of shift in random crops, either way
SMOOTHING = 0.1  # of the labels


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
    found = torch.zeros(len(labels), dtype=torch.bool)
    order, classes = torch.randperm(len(labels), generator=generator("validation")), labels.unique()
    for index, label in enumerate(classes):
        rows, share = order[labels[order] == label], count // len(classes) + (index < count % len(classes))
        if share >= len(rows):
            raise ValueError(f"--val {count} leaves no training image of class {label}, which has {len(rows)}")
        found[rows[:share]] = True
    return found


def train(args):
    device = get_device(args.device)
    if not 0 <= args.cutout <= 32:
        raise ValueError(f"--cutout must be 0 to 32 pixels, got {args.cutout}")
    start = load_vgg16(args.init).state_dict() if args.init else None  # before the images, which take a while
    data = cifar10_images(args.dataset_path)
    validation = held_out(data.train_labels, args.val)
    train_images, train_labels = data.train[~validation], data.train_labels[~validation]
    if args.batch_size > len(train_images):
        raise ValueError(f"--batch_size {args.batch_size} is more than the {len(train_images)} training images")
    settings = {
        name: getattr(args, name)
        for name in ("seed", "epochs", "batch_size", "lr", "warmup", "weight_decay", "dropout", "small_crops", "cutout")
    }
    settings["init"] = hashlib.sha256(Path(args.init).read_bytes()).hexdigest() if args.init else ""
    if args.val:  # checkpoints from before there was one have no such setting
        settings["val"] = args.val
    torch.manual_seed(args.seed)  # initial weights and dropout
    draws = generator("vgg", args.seed)  # order, crops and flips
    net = VGG16(args.dropout)
    if start:
        net.load_state_dict(start)
    net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay)
    checkpoint, first, best = Path(args.checkpoint), 0, {"accuracy": -1.0}  # the best epoch on the validation set

    def validated(epoch):
        reached = accuracy(net, data.train[validation], data.train_labels[validation])
        net_now = {name: value.cpu().clone() for name, value in net.state_dict().items()}
        return reached, {"accuracy": reached, "epoch": epoch, "net": net_now} if reached > best["accuracy"] else best

    if args.resume and checkpoint.exists():
        try:
            state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        except Exception as error:  # a damaged file raises many kinds
            raise ValueError(
                f"{checkpoint}: damaged ({type(error).__name__}); delete it, or run without --resume"
            ) from None
        if state["settings"] != settings:
            raise ValueError(
                f"{checkpoint}: was written with {state['settings']}; resume with the same, or without --resume"
            )
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        draws.set_state(state["draws"])
        first, best = state["epoch"], state.get("best", best)
    elif args.val and args.init:
        reached, best = validated(0)
        print(f"{args.init}: validation accuracy {reached:.4f}", flush=True)

    # half of the images are mirrored in even epochs and the others in odd ones, so that two epochs show both sides of
    # each; worth more in a short training than fresh coin tosses (Jordan, arXiv 2404.00498)
    mirrored = torch.rand(len(train_images), generator=generator("mirror", args.seed)) < 0.5
    images = pad(train_images, (PAD,) * 4, mode="reflect").permute(0, 2, 3, 1).contiguous()
    per_epoch = len(images) // args.batch_size  # the incomplete batch is left to another epoch's order
    steps = args.epochs * per_epoch
    for epoch in range(first, args.epochs):
        net.train()
        size = 24 if epoch < args.small_crops * args.epochs else 32
        began, total, right = time.time(), 0.0, 0
        order = torch.randperm(len(images), generator=draws)[: per_epoch * args.batch_size]
        batches = tqdm(order.split(args.batch_size), f"epoch {epoch + 1}/{args.epochs}", disable=None, leave=False)
        for i, index in enumerate(batches):
            optimizer.param_groups[0]["lr"] = args.lr * one_cycle(epoch * per_epoch + i, steps, args.warmup)
            x = augment(images[index], mirrored[index] ^ bool(epoch % 2), size, draws, args.cutout).to(device)
            y = train_labels[index].to(device)
            with torch.autocast(device.type, torch.bfloat16):
                logits = net(x)
            loss = cross_entropy(logits.float(), y, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            right += (logits.argmax(1) == y).sum().item()
        if not total < float("inf"):
            raise ValueError(f"the loss became {total / per_epoch} in epoch {epoch + 1}; take a smaller --lr")
        state = {
            "settings": settings,
            "epoch": epoch + 1,
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "draws": draws.get_state(),
        }
        told = (
            f"epoch {epoch + 1}/{args.epochs}: loss {total / per_epoch:.4f}, "
            f"training accuracy {right / len(order):.4f}, "
        )
        if args.val:
            reached, best = validated(epoch + 1)
            state["best"] = best
            told += f"validation accuracy {reached:.4f}, "
        with atomic_write(checkpoint) as file:
            torch.save(state, file)
        print(f"{told}{time.time() - began:.0f} s", flush=True)

    if args.val:
        net.load_state_dict(best["net"])
        kept = f"epoch {best['epoch']}" if best["epoch"] else f"{args.init}: no epoch is better"
        print(f"kept by validation accuracy {best['accuracy']:.4f} on {args.val} images: {kept}", flush=True)
    with atomic_write(args.output) as file:
        torch.save({name: v.half() if v.is_floating_point() else v for name, v in net.state_dict().items()}, file)
    net.load_state_dict(torch.load(args.output, weights_only=True, map_location="cpu"))
    print(f"{args.output}: test accuracy {accuracy(net, data.test, data.test_labels):.4f} on {len(data.test)} images")


def share(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_path", default="data", help="holds cifar10/{train,test}/<class>/ or torchvision's archive"
    )
    parser.add_argument("--output", default="pretrained/cifar10_vgg16.pth")
    parser.add_argument("--checkpoint", default="checkpoints/cifar10_vgg16.ckpt")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint if it is there")
    parser.add_argument("--init", metavar="FILE", help="weights to start from (default: random ones)")
    parser.add_argument("--epochs", type=positive_int, default=16)
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
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
