"""The words of a report that have a defined meaning, with the result's own numbers in them."""

from __future__ import annotations

from planaria.report.reading import Document, Notation, doses, part, records
from planaria.report.words import budget, margin

Terms = list[tuple[str, str]]


def terms(document: Document) -> Terms:
    """Every word of the report that has a defined meaning, in the order in which a reader meets them."""
    say = Notation.of(document)
    basic = [
        ("Unit", "The smallest thing that fails: a neuron, a feature map (channel), an attention head, a branch."),
        ("Dose", f"Amount of damage, in {say.dose_unit}."),
    ]
    curve = [
        ("Half-dose", f"Dose at which half of the {say.score_word} above chance is lost."),
        (
            "Critical dose",
            "A fitted change point of the curve, with a bootstrap interval and a test against a smooth "
            "decline; never asserted by eye.",
        ),
    ]
    survival, hardening = bool(part(document, "survival")), bool(part(document, "hardening"))
    if part(document, "vulnerability"):
        return basic[:1] + _vulnerability(document, say)
    if part(document, "lesion_study"):
        return basic[:1] + _lesions(say)
    if part(document, "connection"):
        return basic[:1] + _connection(document, say)
    if part(document, "resilience"):
        return basic[:1] + _resilience(document, say)
    if part(document, "landscape"):
        return basic + _landscape(say)
    found = basic
    if survival:
        found += _survival(document) + _work()
    elif hardening:
        found += _hardening(say) + _work()
    elif doses(document):
        found += _rescue(document) + _work()
    found.append(("Chance", f"The {say.score_word} of guessing."))
    found += [] if survival or hardening else curve
    found += _scaling() if part(document, "scaling") else []
    found += _portrait(say) if part(document, "portrait") else []
    found.append(
        (
            "Interval",
            "95% confidence interval over the independent trials, in brackets. A single trial has none, and "
            "none is shown.",
        )
    )
    return found


def _rescue(document: Document) -> Terms:
    return [
        (
            "Before, damaged, after",
            "The test score intact, with the whole lesion and no repair, and at the end of the repair.",
        ),
        (
            "Rescued",
            f"The validation score comes {margin(document)}, within {budget(document)}. The test split plays "
            "no part in this decision.",
        ),
        (
            "Censored",
            "Not rescued when the trial ended. Such a trial is not dropped: medians are Kaplan-Meier "
            'medians, in which it counts as later than its end. "Not reached": fewer than half of the trials '
            "were rescued.",
        ),
        (
            "In total",
            "Everything a repair spends, counted from the undamaged network, repairs between hits included.",
        ),
        (
            "Since the last hit",
            "The same, counted only after the last damage. It flatters iterative schedules, which have "
            "already trained between the hits; both countings are shown for that reason.",
        ),
    ]


def _work() -> Terms:
    return [
        (
            "Update",
            "One optimiser step on one batch. A closed-form refit needs none; its work is in the multiply-adds.",
        ),
        (
            "Multiply-adds",
            "Multiply-accumulate operations of matrix products, convolutions and linear solves; a backward "
            "pass counts as two forward passes.",
        ),
    ]


def _survival(document: Document) -> Terms:
    found = [
        ("Walk", "One network under a stream of damage: event after event, each a hit and a repair within its budget."),
        (
            "Good set",
            f"The networks whose validation score is {margin(document)}. A walk is inside or outside after "
            "the repair of each event.",
        ),
        ("Retention R", "Of the networks inside before an event, the share that is inside after its repair."),
        (
            "Survival Q",
            "Share of the walks that have been inside after every event so far; its median horizon is the "
            "event by which half of them have left once.",
        ),
    ]
    if part(document, "survival").get("mode") != "turnover":
        return [
            *found,
            ("Attrition", "Dead units stay dead, so that in the end nothing is left: the horizon is finite."),
        ]
    return [
        *found,
        ("Turnover", "A dead unit returns after a delay as an embryonic one: new incoming weights, no outgoing ones."),
        ("Return time", "Events from leaving the good set to being inside again; a Kaplan-Meier median."),
        ("Autocorrelation", "Correlation of the score after repair with itself so many events later."),
        ("Area", "Mean height of the response curve over its doses: how well the network bears damage unrepaired."),
    ]


def _hardening(say: Notation) -> Terms:
    return [
        ("Intact", f"The {say.score_word} without damage: what hardening may cost."),
        ("Area", f"Mean {say.score_word} over the doses of a response curve; higher is harder to hurt."),
        ("Random, worst-first", "Units die in random order, or those first whose loss hurts most."),
        ("With rescue", "The same random damage, each damaged network repaired instantly before it is scored."),
        (
            "Updates to rescue",
            "Median number of updates of plain retraining until the network is rescued; a Kaplan-Meier median, "
            "in which a trial that is not rescued counts as later than its end.",
        ),
        ("Gradient evaluations", "Gradients of one batch; every method gets the same number of them."),
    ]


def _vulnerability(document: Document, say: Notation) -> Terms:
    result = part(document, "vulnerability")
    exact, margin_of = result.get("way") == "exact", str(result.get("margin") or "margin")
    ways = {
        "exact": "Every unit is judged on every input; the result is that of running each damaged network.",
        "screen": "One pass forward and back ranks the pairs of unit and input by how close they are to a change; the "
        "doubtful ones are evaluated, of the others a random part, weighted by one over its chance.",
        "precision": "Inputs are drawn until the interval of every unit is as narrow as was asked for.",
    }
    way = str(result.get("way"))
    found = [
        (
            "Score lost",
            f"The vulnerability of a unit: the {say.score_word} of the intact network less that of the network in "
            "which it alone is silenced. Below zero the network gains.",
        )
    ]
    found += [(way.capitalize(), ways[way])] if way in ways else []
    found.append(
        (
            "Interval",
            "95% confidence interval, in brackets, of one unit's loss "
            + ("over inputs like these; rough where fewer than about ten change" if exact else "for these inputs")
            + ". The worst of many units was chosen by its loss, so that on "
            "new inputs it is expected to cost a little less.",
        )
    )
    found.append(("Costs nothing", "The score without the unit is as high as with it, or higher."))
    found.append(
        (
            "Held by the worst 1%",
            "Sum of the losses of that share of the units over the sum of all losses above zero.",
        )
    )
    if margin_of == "margin":
        found.append(
            (
                "Margin",
                "Output of the right class less the largest other output of the intact network; a mean over inputs.",
            )
        )
    else:
        found.append((margin_of.capitalize(), "The loss of the training with its sign turned; a mean over inputs."))
    found += [
        (
            "Direct effect",
            f"Change of the mean {margin_of} when the unit is silenced and every later operation is held at its intact "
            "operating point: a first-order estimate.",
        ),
        ("Total effect", f"Change of the mean {margin_of} when the unit is silenced and all later layers respond."),
        ("Compensation", "Total less direct effect; above zero, later layers make up for the loss."),
    ]
    if records(result.get("worst_sets")):
        found += [
            ("Greedy set", "Each unit is the worst given those before it; not necessarily the worst of all sets."),
            ("Worst alone", "The set of the units that cost most one at a time: a first-order choice."),
            ("Random set", "Units drawn at random: mean over draws, interval over draws."),
        ]
    if any("bit" in str(weight.get("new")) for weight in records(result.get("weights"))):
        found.append(("Bit", "Flipped in the stored number: of 32, 31 is the sign and 30 the highest of the exponent."))
    found += [
        ("Forward pass", "Unit of price: one plain run of the intact network over the same inputs."),
        (
            "Audit",
            "Some units, half of them the most harmful, are run again by brute force. Mismatch: the results differ. "
            "Tie: the two largest outputs of an input are so close that rounding decides.",
        ),
    ]
    return [*found, ("Chance", f"The {say.score_word} of guessing.")]


def _lesions(say: Notation) -> Terms:
    return [
        ("Lesion", "A set of units that are silenced together; what they emit is zero."),
        ("Score lost", f"The {say.score_word} of the intact network less that of the lesioned one; of a class, on it."),
        (
            "Cluster",
            "Units of a layer whose responses to the same inputs correlate, or that lie near each other where they "
            "have places; Ward's hierarchical clustering, so that smaller clusters lie within larger ones.",
        ),
        (
            "Selectivity d'",
            "Mean response of a unit to a class less that to all others, in standard deviations; measured on the "
            "training split.",
        ),
        (
            "Control lesion",
            "As many units drawn at random from the same layers. Brackets: the range in which one more would lie in "
            "95% of cases. p: chance that random lesions cost as much (Crawford & Howell 1998).",
        ),
        (
            "Double dissociation",
            "The lesion of A costs A more than B and more than the lesion of B costs A, and the other way round, "
            "each beyond random lesions. It rules out that one class is merely harder.",
        ),
        ("Single dissociation", "One half of that is shown, the other is not."),
        (
            "Interval",
            "95% confidence interval over inputs like these, in brackets; paired, because the same inputs are judged "
            "with and without the lesion (Agresti & Min 2005).",
        ),
        (
            "One at a time",
            "Sum of what the units of a region cost when each is silenced alone. A region that costs more has units "
            "that stand in for each other.",
        ),
        ("Chance", f"The {say.score_word} of guessing."),
    ]


def _resilience(document: Document, say: Notation) -> Terms:
    found = part(document, "resilience")
    fisher = str(found.get("of") or "").startswith("Fisher")
    return [
        (
            "Gate vulnerability, predicted change",
            "Mean over inputs of |J z|^2: z is what a unit emits, J the derivative of the outputs by it. First-order "
            "squared change of the outputs when the unit is silenced; dead units have none.",
        ),
        *(
            [("Fisher", "Changes are measured after softmax: those that move no probability count nothing.")]
            if fisher
            else []
        ),
        ("Actual change", "Mean squared change of the outputs with the unit really silenced, on the same inputs."),
        (
            "Cross terms",
            "Units silenced together change the outputs by the sum of what each changes, to first order; its square "
            "holds products of two units, which the sum of their squares leaves out.",
        ),
        ("Outgoing norm", "Norm of the weights by which a unit is read; what magnitude pruning goes by."),
        (
            "Stiff direction, effective dimension",
            "A direction of weight space whose eigenvalue of the metric exceeds a share of the largest. Effective "
            "dimension: sum of l / (l + mu) over the eigenvalues l, mu one thousandth of the largest.",
        ),
        (
            "Break-down",
            f"First place at which the speed is over 3 times that at the start, or the {say.score_word} has lost what "
            "is allowed. Medians count lesions without one as later.",
        ),
        ("Interval", "95% confidence interval: over units for guides and slope, over random lesions for curves."),
        ("Chance", f"The {say.score_word} of guessing."),
    ]


def _connection(document: Document, say: Notation) -> Terms:
    told = [
        (str(way["way"]), f"{str(way['words'])[:1].upper()}{str(way['words'])[1:]}.")
        for way in records(part(document, "connection").get("ways"))
        if way.get("words")
    ]
    return [
        *told,
        (
            "Barrier",
            f"Largest loss above the straight line between the losses of the two ends, or {say.score_word} below that "
            "of the scores, over all points of a path that were visited.",
        ),
        (
            "Alignment",
            "The second network's units put in the order in which its weights are closest to the first's. What it "
            "computes stays the same.",
        ),
        ("Length, energy", "Sums over a path of the distances between neighbours' outputs, and of their squares."),
        ("Control", "The straight line from the first network to itself after some more training: no barrier."),
        ("Interval", "95% confidence interval over inputs, at the worst point that was found."),
        ("Chance", f"The {say.score_word} of guessing."),
    ]


def _landscape(say: Notation) -> Terms:
    return [
        (
            "Good set",
            f"Networks whose validation {say.score_word} is within the tolerance of the intact one. The test split "
            "plays no part in it.",
        ),
        (
            "Retention",
            "Share of the networks of the good set that are in it again after the next event of damage and repair.",
        ),
        (
            "Barrier",
            "Largest drop of the score below the straight line between the scores of the ends; batch normalisation is "
            "re-estimated on the way.",
        ),
        (
            "Aligned",
            "Units reordered to lie like those of the intact network, which leaves what a network computes as it is.",
        ),
        (
            "Distance",
            "Of weights: Euclidean. Of outputs: root mean square over inputs. Of probabilities: Jensen-Shannon.",
        ),
        (
            "Trustworthiness, continuity",
            "How far neighbours in the picture are true ones, and true ones shown as such: 1 is best, pictures of "
            "points without structure come to 0.6 to 0.8. Believed from 0.9 on, where other seeds show the same.",
        ),
        ("Stress", "Root of the squared errors of the distances over the squared distances, at the best scale."),
        (
            "Overlap, disparity",
            "Share of neighbours in common with other seeds; Procrustes disparity from them, 0 for one shape, 1 for "
            "none in common.",
        ),
        ("Separation", "Mean silhouette of the groups of networks: 1 far apart, 0 mixed."),
        (
            "Random walk",
            "In very many dimensions its steps are at right angles to each other, and its principal components draw it "
            "as a smooth curve.",
        ),
        (
            "Filter-normalised",
            "A random direction whose part for each unit is as long as the weights of that unit.",
        ),
        ("Interval", "95% confidence interval; it allows for the networks and walks that pairs of networks share."),
        ("Chance", f"The {say.score_word} of guessing."),
    ]


def _scaling() -> Terms:
    return [
        ("Width", "Units of a hidden layer."),
        (
            "Steepness",
            "Steepest slope of the mean response curve. A transition gets steeper without bound as widths grow.",
        ),
        ("Susceptibility", "Width times the largest variance of the score between random orders."),
        ("Exponent", "Slope of the straight line through logarithms: 0 where width plays no part."),
    ]


def _portrait(say: Notation) -> Terms:
    return [
        ("NLL", "Negative log-likelihood: mean surprise, in nats per example, at the right answer. Lower is better."),
        (
            "ECE",
            "Expected calibration error: mean gap between how sure the network is and how often it is right.",
        ),
        ("Sparsity", "Share of the weights that are zero."),
        (
            "Compaction",
            "Dead units are cut out for real, and all that only served them; the outputs stay the same up to "
            "the stated difference.",
        ),
        ("Corrupted, attacked", f"The {say.score_word} on inputs that are disturbed at random or against the network."),
    ]
