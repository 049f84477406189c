"""The sentence and the tables that the numbers of a figure or a sweep make are written here, for the report."""

if __name__ == "__main__":
    raise SystemExit("findings.py is a part of scripts/reproduce.py: run that")

from ck_ntk.common.slopes import fit_slope
from deq_enn.reporting.markdown import Table
from deq_enn.reporting.style import geometric_mean
from deq_enn.reporting.tables import cost_table, difference_table, equality_table

MODES = {"ck": "CK", "ntk": "NTK trained in (a, A, B)", "ntk_aA": "NTK trained in (a, A)"}  # of matching_map
STEPS = 3  # of the networks whose distance from a convolutional DEQ is told

# ---------------------------------------------------------------------------------------------------------------
# figures


def sizes_of(record):
    """Returns what the errors of a figure's curves are against: widths, or numbers of samples."""
    return record.get("widths") or record.get("n") or record["settings"]["n"]


def kernel_rows(record, name):
    """Returns rows [script, curve, slope, error at the least size, at the largest] of a figure's JSON."""
    if "errors" not in record:  # a map, not curves against n
        return []
    sizes, fits = sizes_of(record), record.get("slopes") or {}
    rows = []
    for curve, errors in record["errors"].items():
        fit = fits.get(curve) or (record.get("slope") if curve == "matched" else None) or fit_slope(sizes, errors)
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
    errors, sizes = record["errors"], sizes_of(record)
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


def width_finding(record, name):
    """Says how far the kernels of the widest networks are from their limits."""
    deq, *matched = (geometric_mean(errors[-1]) for errors in record["errors"].values())
    return (
        f"`{name}`: at width {record['widths'][-1]} the DEQ's kernel is {deq:.2g} from its limit, those of its two "
        f"matched networks {' and '.join(f'{error:.2g}' for error in matched)}."
    )


def features_finding(record, name):
    """Says how far matched and unmatched networks are from DEQs on features, over both kernels and all activations."""
    size, said = record["settings"]["n"][-1], []
    for kind in ("matched", "unmatched"):
        last = [geometric_mean(e[-1]) for curve, e in record["errors"].items() if curve.split()[-1] == kind]
        said.append(f"{kind} networks are {min(last):.2g} to {max(last):.2g} from their DEQs")
    return f"`{name}`: at n = {size} {', '.join(said)}."


def any_activation_finding(record, name):
    """Says how far the matched networks of all activations are from their DEQs, kernel by kernel."""
    said = []
    for kernel, rows in record["kernels"].items():
        matched, unmatched = (
            [geometric_mean(row[kind][-1]) for row in rows.values()] for kind in ("matched", "unmatched")
        )
        said.append(
            f"{kernel.upper()}s are {min(matched):.2g} to {max(matched):.2g} from theirs, those of unmatched networks "
            f"{min(unmatched):.2g} to {max(unmatched):.2g}"
        )
    count, n = len(record["kernels"]["ck"]), record["settings"]["n"][-1]
    return f"`{name}`: at n = {n} the networks matched to {count} DEQs have kernels near theirs: {'; '.join(said)}."


def map_finding(record, name):
    """Says how many DEQs of the grid were matched, in each kernel."""
    said, residuals = [], []
    for mode, rows in record["matches"].items():
        matches = [match for row in rows.values() for match in row]
        residuals += [match["residual"] for match in matches if match["family"]]
        said.append(f"{sum(bool(match['family']) for match in matches)} of {len(matches)} in {MODES.get(mode, mode)}")
    worst = f"the largest residual of the four equations is {max(residuals):.0e}"
    return f"`{name}`: matched are {', '.join(said)}; {worst}."


def conv_table(record):
    """Returns how far small networks are from convolutional DEQs, with the best factor, in CK and NTK."""
    names = [f"{kind} {STEPS}" for kind in ("unrolled", "resolvent")] + ["matched", "plain 1", "plain 2"]
    rows = []
    for activation, by_data in record["distances"].items():
        for data, by_variance in by_data.items():
            for sigma_a2, distances in by_variance.items():
                cells = [
                    f"{distances[network][1]:.2g} / {distances[network][3]:.2g}" if network in distances else "–"
                    for network in names
                ]
                rows.append([activation, data, sigma_a2, *cells])
    return Table(
        "Distance of small networks from convolutional DEQs, centred kernels with the best factor, CK / NTK",
        ["DEQ", "images", "σ_a²", *names],
        rows,
        f"Unrolled and resolvent: of {STEPS} steps. Circular padding.",
    )


def resolvent_finding(record, name):
    """Says how near a few steps of the resolvent's network come, beside plain unrolling."""
    said = []
    for sigma_a2, numbers in record["convolutional"].items():
        step = min(STEPS, len(numbers["errors"]["resolvent"])) - 1
        (ck, ntk), (plain_ck, plain_ntk) = (numbers["errors"][kind][step] for kind in ("resolvent", "unrolled"))
        said.append(
            f"{ck:.2g} (CK) and {ntk:.2g} (NTK) from the DEQ at σ_a² = {sigma_a2}, where plain unrolling is "
            f"{plain_ck:.2g} and {plain_ntk:.2g}"
        )
    return f"`{name}`: after {step + 1} steps the network of the resolvent is {', and '.join(said)}."


# of the others: kernel_finding
FINDINGS = {
    "finite_width_kernels": width_finding,
    "cifar10_matching": features_finding,
    "any_activation_matching": any_activation_finding,
    "matching_map": map_finding,
    "resolvent_network": resolvent_finding,
    "training_dynamics": training_finding,
    "pcdeq_convergence": pcdeq_finding,
    "steps": steps_finding,
}
TABLES = {
    "conv_matching": conv_table,
    "training_dynamics": training_table,
    "pcdeq_convergence": pcdeq_table,
    "steps": steps_table,
}


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
    taken = f"A DEQ's features took {' and '.join(ratios)} the time of its matched network's in these runs"
    features = f" {taken}, which other work may have slowed unequally." if ratios else ""
    return f"At width {width}, in percentage points: {pairs}. Two one-sided tests: {verdicts}.{features}"
