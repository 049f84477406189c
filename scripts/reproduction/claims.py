"""The report's sections are here: what the paper claims, and the sentence and table that a stage's numbers make."""

if __name__ == "__main__":
    raise SystemExit("claims.py is a part of scripts/reproduce.py: run that")

from deq_enn.reporting.markdown import Table
from deq_enn.reporting.style import geometric_mean
from deq_enn.reporting.tables import cost_table, difference_table, equality_table

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


# ---------------------------------------------------------------------------------------------------------------
# figures


def kernel_rows(record, name):
    """Returns rows [script, curve, slope, error at the least size, at the largest] of a figure's JSON."""
    if "errors" not in record:  # a map, not curves against n
        return []
    sizes, fits = record.get("widths") or record["settings"]["n"], record.get("slopes") or {}
    rows = []
    for curve, errors in record["errors"].items():
        fit = fits.get(curve) or (record.get("slope") if curve == "matched" else None)
        rows.append(
            [
                f"`{name}`",
                curve,
                f"{fit[0]:+.3f} ± {fit[1]:.3f}".replace("-", "−") if fit else "–",
                *(f"{geometric_mean(errors[i]):.3g} ({sizes[i]})" for i in (0, -1)),
            ]
        )
    return rows


def kernel_finding(record, name):
    """Says what a figure's JSON shows, in a sentence or ""."""
    if "errors" not in record:
        return ""
    errors, sizes = record["errors"], record["settings"].get("n")
    if "matched" in errors:
        matched, unmatched = (geometric_mean(errors[key][-1]) for key in ("matched", "unmatched"))
        slope = f", with slope {signed(record['slope'][0])}" if record.get("slope") else ""
        gap = 1 - min(record["overlaps"])
        return (
            f"`{name}`: at n = {sizes[-1]} the matched network's kernel is {matched:.2g} from the DEQ's{slope}, "
            f"the unmatched one's {unmatched:.2g}; the overlaps of the two largest eigenvectors are within "
            f"{gap:.1g} of 1."
        )
    slopes = [fit[0] for fit in (record.get("slopes") or {}).values() if fit]
    if slopes and "relu" in errors:
        last = [geometric_mean(e[-1]) for e in errors.values()]
        return (
            f"`{name}`: slopes from {signed(min(slopes))} to {signed(max(slopes))} over {len(slopes)} activations; "
            f"at n = {sizes[-1]} errors from {min(last):.2g} to {max(last):.2g}."
        )
    return ""


def signed(value):
    return f"{value:+.2f}".replace("-", "−")


def columns_of(record):
    """Returns the cells at the largest width of `training_dynamics`, by learning rate, f - f_0 first."""
    widest = max(cell["width"] for cell in record["cells"])
    cells = [cell for cell in record["cells"] if cell["width"] == widest]
    return widest, sorted(cells, key=lambda cell: (not cell["centred"], cell["lr"]))


def training_table(record):
    """Returns the distances of each network's curve of training loss to the DEQ's."""
    width, cells = columns_of(record)

    def shown(row):
        return f"{row['distance']:.3f} ± {row['distance_error']:.3f}" if row["distance"] is not None else "–"

    names = [name for name in cells[0]["networks"] if name != "deq"]
    return Table(
        f"Distance to the DEQ's curve of training loss at width {width}, of the drop of its loss",
        ["network", *(f"lr {cell['lr']:g}{', centred' * cell['centred']}" for cell in cells)],
        [[record["names"][name], *(shown(cell["networks"][name]) for cell in cells)] for name in names],
        "± standard error over the seeds. Centred: f − f_0 is trained, f_0 being the network at its start. "
        "What diverges is compared up to there; a dash: it diverged before the first point of its curve.",
    )


def training_finding(record, name):
    width, cells = columns_of(record)
    first = next((cell for cell in cells if not cell["centred"]), cells[0])
    ntk, unmatched = (first["networks"][key]["distance"] for key in ("ntk", "unmatched"))
    if ntk is None or unmatched is None:
        return ""
    return (
        f"`{name}`: at width {width} and a learning rate of {first['lr']:g} the curve of training loss of the "
        f"NTK-matched network is {ntk:.2g} of the drop of the DEQ's loss from the DEQ's curve, that of the "
        f"unmatched one {unmatched:.2g}."
    )


def pcdeq_table(record):
    """Returns the rates of the layers trained on MNIST, beside what they should be."""
    rows = [
        [
            r["layer"],
            *(f"{r[key]:.4f}" for key in ("radius", "rate", "jacobian_radius", "bound")),
            f"{100 * r['test_accuracy']:.2f}",
        ]
        for r in record["trained"]
        if r["converged"]
    ]
    return Table(
        "Layers of 80 units trained on MNIST: rate at which plain iteration converges",
        ["activation", "spectral radius of W", "rate", "of the Jacobian", "bound of five steps", "test accuracy, %"],
        rows,
    )


def pcdeq_finding(record, name):
    trained = record["trained"]
    lost = [r["layer"] for r in trained + record["random"] if not r["converged"] and r["layer"] != "plain"]
    rates = [r["rate"] for r in trained if r["converged"]]
    largest = max(r["radius"] for r in record["random"] if r["layer"] != "plain")
    every = (
        f"every positive concave layer converges, the trained ones at rates from {min(rates):.2f} to "
        f"{max(rates):.2f}, random ones up to a spectral radius of {largest:.0f}"
        if not lost
        else f"not every positive concave layer converges: {', '.join(lost)}"
    )
    return f"`{name}`: {every}; a plain DEQ stops at {record['plain_converges_up_to']:.2f}."


def steps_table(record):
    """Returns the test accuracies of trained DEQs and of their first steps."""
    ways = "stopped", "distilled", "from scratch"
    rows = [
        [name, f"{deq['accuracy']:.2f}", way, *(f"{deq[way][k][0]:.2f}" if k in deq[way] else "–" for k in "1234")]
        for name, deq in record["deqs"].items()
        for way in ways
    ]
    header = ["DEQ", "its accuracy, %", "its steps", *(f"k = {k}, %" for k in "1234")]
    return Table("Test accuracy of trained DEQs and of k of their steps", header, rows)


def steps_finding(record, name):
    said = [
        f"{deq['accuracy'] - deq['stopped']['1'][0]:.1f} points ({deq_name}; distilled "
        f"{deq['accuracy'] - deq['distilled']['1'][0]:.1f})"
        for deq_name, deq in record["deqs"].items()
    ]
    return f"`{name}`: stopped after one step trained DEQs lose {', '.join(said)}.".replace("-", "−")


# of the others: kernel_finding
FINDINGS = {"training_dynamics": training_finding, "pcdeq_convergence": pcdeq_finding, "steps": steps_finding}
TABLES = {"training_dynamics": training_table, "pcdeq_convergence": pcdeq_table, "steps": steps_table}


def finding(record, name):
    """Says what the numbers of a figure show, in a sentence or ""."""
    return FINDINGS.get(name, kernel_finding)(record, name)


def figure_tables(records):
    """Returns the tables of the figures of a section, {name: record}."""
    made = [TABLES[name](record) for name, record in records.items() if name in TABLES]
    rows = [row for name, record in records.items() for row in kernel_rows(record, name)]
    if rows:
        size = "width" if list(records) == ["finite_width_kernels"] else "n"
        made.append(
            Table(
                "Relative spectral error, geometric mean over draws",
                ["figure", "curve", f"slope in log {size}", f"error (least {size})", f"error (largest {size})"],
                rows,
            )
        )
    return made


# ---------------------------------------------------------------------------------------------------------------
# sweeps


def sweep_finding(experiment):
    """Says what the paired differences at the largest width show, in a sentence or two, or ""."""
    table, equality, cost = difference_table(experiment), equality_table(experiment), cost_table(experiment)
    if table is None:
        return ""
    width, *cells = table.rows[-1]
    pairs = "; ".join(f"{pair}: {cell}" for pair, cell in zip(table.header[1:], cells))
    verdicts = (
        "; ".join(f"{row[1]}: {row[-1]}" for row in equality.rows if row[0] == width)
        if equality
        else "too few seeds for a claim of equality"
    )
    costs = [dict(zip(cost.header, row)) for row in cost.rows] if cost else []
    ratios = [f"{row['features, ratio']} times ({row['DEQ']})" for row in costs if row["width"] == width]
    features = f" A DEQ's features take {' and '.join(ratios)} the time of its matched network's." if ratios else ""
    return f"At width {width}, in percentage points: {pairs}. Two one-sided tests: {verdicts}.{features}"
