import pytest
import torch

from deq_enn.data import vgg16
from deq_enn.data.images import cifar10_images
from deq_enn.data.vgg16 import VGG16, load_vgg16
from scripts import pretrain_vgg
from tests.data.test_vgg16 import SMALL
from tests.helpers.image_files import write_cifar


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script on a tiny image folder with a small network; gives the bytes of the weights that it wrote."""
    monkeypatch.setattr(vgg16, "VGG16_WIDTHS", SMALL)
    write_cifar(tmp_path)

    def run(name, *flags):
        output = tmp_path / f"{name}.pth"
        pretrain_vgg.main(
            [
                "--dataset_path",
                str(tmp_path),
                "--output_path",
                str(output),
                "--checkpoint",
                str(tmp_path / f"{name}.ckpt"),
                "--device",
                "cpu",
                "--batch_size",
                "5",
                "--epoch",
                "4",
                *flags,
            ]
        )
        return torch.load(output, weights_only=True)

    return run


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_writes_float16_weights_that_load(run, tmp_path, capsys):
    state = run("a")
    assert all(v.dtype == torch.float16 for v in state.values() if v.is_floating_point())
    net = load_vgg16(tmp_path / "a.pth")
    data = cifar10_images(tmp_path)
    printed = capsys.readouterr().out
    assert f"test accuracy {pretrain_vgg.accuracy(net, data.test, data.test_labels):.4f} on 10 images" in printed
    assert printed.count("training accuracy") == 4


@pytest.mark.slow
def test_same_seed_same_weights_other_seed_others(run):
    first = run("a")
    assert same(first, run("b")) and not same(first, run("c", "--seed", "1"))


@pytest.mark.few(1)
@pytest.mark.parametrize("step", [9, 4])  # in the third epoch after two checkpoints, and in the first
def test_killed_and_resumed_ends_the_same(run, monkeypatch, step):
    whole = run("whole")
    steps, loss = [], pretrain_vgg.cross_entropy

    def die(*args, **kwargs):
        steps.append(1)
        if len(steps) == step:
            raise KeyboardInterrupt
        return loss(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_vgg, "cross_entropy", die)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    assert same(whole, run("killed", "--resume"))


def test_a_validation_set_is_even_and_the_same_for_every_seed():
    labels = torch.arange(10).repeat(30)[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    result = pretrain_vgg.held_out(labels, 53)
    assert result.sum() == 53 and sorted(labels[result].bincount().tolist()) == [5] * 7 + [6] * 3
    torch.manual_seed(5)
    assert torch.equal(result, pretrain_vgg.held_out(labels, 53)) and not pretrain_vgg.held_out(labels, 0).any()
    with pytest.raises(ValueError, match="--val 300 leaves no training image of class 0, which has 30"):
        pretrain_vgg.held_out(labels, 300)


@pytest.fixture
def accuracies(monkeypatch):
    """The accuracies that a validation after each epoch finds, and the numbers of images that they were asked of."""
    result, asked = [], []
    monkeypatch.setattr(pretrain_vgg, "accuracy", lambda net, images, labels: asked.append(images) or result.pop(0))
    return result, asked


def test_the_epoch_best_in_validation_is_written_and_the_test_set_is_read_once(
    run, tmp_path, monkeypatch, capsys, accuracies
):
    result, asked = accuracies
    written, write = [], pretrain_vgg.atomic_write

    def watched(path):
        if str(path).endswith(".pth"):
            written.append(path)
        return write(path)

    monkeypatch.setattr(pretrain_vgg, "atomic_write", watched)
    result += [0.3, 0.7, 0.7, 0.6, 0.5]  # four epochs, and the test; of equals, the first
    kept = run("a", "--val", "10")
    data = cifar10_images(tmp_path)
    assert len(asked) == 5 and [len(images) for images in asked] == [10] * 5 and torch.equal(asked[4], data.test)
    assert not any((image == data.test).flatten(1).all(1).any() for images in asked[:4] for image in images)
    printed = capsys.readouterr().out
    assert printed.count("validation accuracy 0.7000") == 3 and "on 10 images: epoch 2\n" in printed
    assert len(written) == 1
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    best, last = (
        {k: v.half() if v.is_floating_point() else v for k, v in net.items()}
        for net in (state["best"]["net"], state["net"])
    )
    assert state["best"]["epoch"] == 2 and same(kept, best) and not same(kept, last)


def test_no_training_image_is_in_the_validation_set(run, monkeypatch, tmp_path):
    seen, augment = [], pretrain_vgg.augment

    def watched(images, *settings):
        seen.append(images[:, 4:-4, 4:-4])
        return augment(images, *settings)

    monkeypatch.setattr(pretrain_vgg, "augment", watched)
    run("a", "--val", "10")
    data = cifar10_images(tmp_path)
    hidden = data.train[pretrain_vgg.held_out(data.train_labels, 10)].permute(0, 2, 3, 1)
    seen = torch.cat(seen)
    assert len(seen) == 40 and not any((seen == image).flatten(1).all(1).any() for image in hidden)


@pytest.mark.slow
def test_a_restart_that_does_not_improve_leaves_the_weights_that_it_had(run, tmp_path, capsys, accuracies):
    result, _ = accuracies
    result += [0.5]
    first = run("a")
    result += [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert same(first, run("b", "--val", "10", "--init", str(tmp_path / "a.pth")))
    assert "a.pth: no epoch is better" in capsys.readouterr().out


@pytest.mark.slow
def test_with_validation_killed_and_resumed_ends_the_same(run, monkeypatch, accuracies):
    accuracies[0].extend([0.9, 0.1, 0.2, 0.3, 0.5])  # the first epoch is the best, of four; and the test
    whole = run("whole", "--val", "10")
    accuracies[0].extend([0.9, 0.1, 0.2, 0.3, 0.5])
    steps, loss = [], pretrain_vgg.cross_entropy

    def die(*args, **kwargs):
        steps.append(1)
        if len(steps) == 6:  # of two an epoch
            raise KeyboardInterrupt
        return loss(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_vgg, "cross_entropy", die)
        with pytest.raises(KeyboardInterrupt):
            run("killed", "--val", "10")
    assert same(whole, run("killed", "--val", "10", "--resume"))


@pytest.mark.slow
def test_learns(run, tmp_path):
    run("a", "--epoch", "60", "--lr", "0.05", "--batch_size", "20", "--dropout", "0")
    data = cifar10_images(tmp_path)
    assert pretrain_vgg.accuracy(load_vgg16(tmp_path / "a.pth"), data.test, data.test_labels) > 0.5


@pytest.mark.parametrize(
    "flags, what",
    [
        (["--epoch", "0"], "positive"),
        (["--batch_size", "21"], "more than the 20 training images"),
        (["--epoch", "x"], "positive"),
        (["--val", "20"], "leaves no training image of class 0"),
        (["--val", "-1"], "whole number from 0"),
        (["--val", "10", "--batch_size", "11"], "more than the 10 training images"),
        (["--small_crops", "1.5"], "from 0 to 1"),
        (["--warmup", "-1"], "from 0 to 1"),
        (["--cutout", "33"], "0 to 32 pixels, got 33"),
        (["--init", "none.pth"], "none.pth"),
        (["--lr", "1e30"], "smaller --lr"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_flags(run, tmp_path, capsys, flags, what):
    with pytest.raises(SystemExit) as stop:
        run("a", *flags)
    assert stop.value.code == 2 and what in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize("share, sizes", [("0", [32] * 4), ("0.5", [24, 24, 32, 32]), ("1", [24] * 4)])
def test_the_first_epochs_see_small_crops(run, monkeypatch, share, sizes):
    augment, seen = pretrain_vgg.augment, []

    def watched(images, mirrored, size, draws, cutout):
        seen.append(size)
        return augment(images, mirrored, size, draws, cutout)

    monkeypatch.setattr(pretrain_vgg, "augment", watched)
    run("a", "--small_crops", share)
    assert seen[::4] == sizes and len(seen) == 16  # four batches an epoch


@pytest.mark.slow
def test_init_starts_from_the_weights_of_the_file(run, tmp_path, monkeypatch):
    run("a")
    made = []

    class Recorded(VGG16):
        def __init__(self, dropout):
            super().__init__(dropout)
            made.append(self)

    def stop(*_):
        raise ValueError("before the first step")

    monkeypatch.setattr(pretrain_vgg, "VGG16", Recorded)
    monkeypatch.setattr(pretrain_vgg, "one_cycle", stop)
    with pytest.raises(SystemExit):
        run("b", "--init", str(tmp_path / "a.pth"))
    assert same(made[0].state_dict(), load_vgg16(tmp_path / "a.pth").state_dict())


@pytest.mark.slow
def test_resume_refuses_other_initial_weights(run, tmp_path, capsys):
    run("a")
    run("b", "--init", str(tmp_path / "a.pth"))
    run("a", "--seed", "1")
    with pytest.raises(SystemExit):
        run("b", "--init", str(tmp_path / "a.pth"), "--resume")
    assert "resume with the same" in capsys.readouterr().err


def test_resume_refuses_other_settings_and_damaged_checkpoints(run, tmp_path, capsys):
    run("a")
    with pytest.raises(SystemExit):
        run("a", "--resume", "--seed", "3")
    assert "resume with the same" in capsys.readouterr().err
    (tmp_path / "a.ckpt").write_bytes(b"PK damaged")
    with pytest.raises(SystemExit):
        run("a", "--resume")
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("size", [24, 32])
def test_crops_are_shifts_near_the_centre(size):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8)
    shifts = [
        image[top : top + size, left : left + size]
        for top in range(40 - size + 1)
        for left in range(40 - size + 1)
        if abs(top - (40 - size) / 2) <= 4 and abs(left - (40 - size) / 2) <= 4
    ]
    batch = image.expand(300, 40, 40, 3)
    for mirrored in (False, True):
        crops = pretrain_vgg.augment(batch, torch.full((300,), mirrored), size, torch.Generator().manual_seed(0))
        assert crops.shape == (300, 3, size, size) and crops.is_contiguous(memory_format=torch.channels_last)
        crops = crops.flip(3) if mirrored else crops
        result = {
            next(i for i, shift in enumerate(shifts) if torch.equal(crop.permute(1, 2, 0), shift)) for crop in crops
        }
        assert len(result) > 70  # of 81


def test_cutout_is_one_square_in_the_mean_colour():
    black = torch.zeros(500, 40, 40, 3, dtype=torch.uint8)
    crops = pretrain_vgg.augment(black, torch.zeros(500, dtype=torch.bool), 32, torch.Generator().manual_seed(0), 8)
    pixels, cut = crops.movedim(1, -1), crops[:, 0] > 0
    assert (pixels[cut] == torch.tensor([125, 123, 114])).all() and not pixels[~cut].any()
    centres = set()
    for square in cut:
        rows, columns = square.any(1).nonzero().ravel(), square.any(0).nonzero().ravel()
        assert square.sum() == len(rows) * len(columns)  # a rectangle, smaller than the square only at the border
        for line in (rows, columns):
            assert 4 <= len(line) <= 8 and (len(line) == 8 or line[0] == 0 or line[-1] == 31)
        centres.add((rows[0].item(), columns[0].item()))
    assert len(centres) > 250


@pytest.mark.parametrize("warmup, peak", [(0.2, 200), (0.05, 50), (0, 0), (1, 999)])
def test_one_cycle_rises_for_the_warmup_then_falls(warmup, peak):
    rates = [pretrain_vgg.one_cycle(step, 1000, warmup) for step in range(1000)]
    top = rates.index(max(rates))
    assert 0.99 < rates[top] <= 1 and abs(top - peak) < 5
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert (top == 0 or rates[0] < 1 / peak) and (top == 999 or rates[-1] < 0.01)


def test_warmup_reaches_the_schedule(run, monkeypatch):
    one_cycle, seen = pretrain_vgg.one_cycle, set()

    def watched(step, steps, warmup):
        seen.add(warmup)
        return one_cycle(step, steps, warmup)

    monkeypatch.setattr(pretrain_vgg, "one_cycle", watched)
    run("a", "--warmup", "0.5")
    assert seen == {0.5}


def test_small_images_too_end_as_one_pixel():
    with torch.no_grad():
        assert VGG16().eval()(torch.zeros(1, 3, 24, 24, dtype=torch.uint8)).shape == (1, 10)
