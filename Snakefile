# The graph of the study, and its only orchestrator: which paper notebook needs which, with which
# parameters. `radgen paper` runs it in runs/<cohort>/<profile>; paths below are relative to that.
#
# A notebook runs again when it, a module it imports, one of its parameters or a notebook before it
# changes, and not otherwise. Checkpoints and image stores are no outputs here: an output is deleted
# before its rule runs again, and these are what an interrupted run goes on from.
import json, os, sys
from pathlib import Path

os.environ.setdefault("RADGEN_PYTHON", sys.executable)
sys.path.insert(0, os.environ.get("RADGEN_ROOT", os.path.dirname(workflow.main_snakefile)))
from radgen.core.names import is_phantom
from radgen.core.paths import runs_dir
from radgen.run.executors import rule_needs
from radgen.run.graph import BENCHMARK, notebook_inputs
from radgen.run.parameters import notebook_parameters, paper_notebooks
from radgen.run.profiles import params_for, settings
from radgen.run.record import study_files

COHORT, PROFILE = map(str, (config["cohort"], config["profile"]))
SETTINGS = settings(PROFILE, COHORT)
NEEDS = rule_needs(PROFILE)  # config/executors/resources.yaml
NOTEBOOKS = paper_notebooks()
DEFAULTS = {
    stem: {name: default for name, (_, default) in notebook_parameters(nb).items()}
    for stem, nb in NOTEBOOKS.items()
}
VALUES = {stem: {**DEFAULTS[stem], **SETTINGS[stem]} for stem in NOTEBOOKS}

CONDITIONS = VALUES["08_scorecard"]["conditions"]
PROTOCOLS = VALUES["03_generate"]["protocols"]
DRAWS_UNPAIRED = VALUES["03_generate"]["model"]
N_FOLDS = VALUES["02_train"]["n_folds"] | {"preprint": 1}
PREPRINT_CONDITION = "multiomic"  # of the preprint's model
SEEDS = [f"-seed{s}" if s else "" for s in SETTINGS["run"]["seeds"]]
# No part of a run unless asked for, but shown once they are there.
ASKED_FOR = [
    "01a_series", "01b_factorization", "04a_released_images", "07b_coverage", "07c_learning_curve",
    "07d_ablations", "07e_repeated"
]
STUDY = [s for s in NOTEBOOKS if s not in (*ASKED_FOR, "08_scorecard", BENCHMARK)]
# `radgen paper --audit`. Coverage, learning curve and repetitions need a known truth.
SIMULATED = is_phantom(COHORT)
WITH_AUDIT = ["01b_factorization"]
OF_TRUTH = ["07b_coverage", "07c_learning_curve", "07e_repeated"]
WITH_AUDIT += OF_TRUTH if SIMULATED else ["07d_ablations"]
WITH_AUDIT += ["04a_released_images"] if COHORT == "published" else []
WITHOUT_ASKING = ["01a_series"] if COHORT == "tcga" else []
EXECUTED = "notebooks/{}.ipynb"
# On one machine `radgen paper` sets the threads of a notebook. On a cluster they are those of the rule.
RUN = (
    'RADGEN_THREADS="${{RADGEN_THREADS:-{threads}}}" "$RADGEN_PYTHON" -m radgen.run.cli'
    " notebook {input.notebook:q} {output.notebook:q}"
    " --parameters {params.values:q} > {log:q} 2>&1"
)


def source(stem):
    "A notebook and the modules it imports, as inputs."
    run = runs_dir(COHORT, PROFILE)
    notebook, *code = [os.path.relpath(p, run) for p in notebook_inputs(NOTEBOOKS[stem])]
    return dict(notebook=notebook, code=code)


def cores(rule):
    "Cores that a cluster is asked for. On one machine a notebook counts as one job."
    return NEEDS[rule]["threads"] if config.get("executor") else 1


def needs(rule):
    "Memory in MB, minutes and GPUs of a job."
    return {name: NEEDS[rule][name] for name in ("mem_mb", "runtime", "gpu")}


def parameters(stem, **wildcards):
    return json.dumps(params_for(stem, COHORT, PROFILE, **wildcards))


def models(condition):
    "The models of a condition: those the profile names for it, else all."
    return SETTINGS["run"]["models"].get(condition, VALUES["03_generate"]["models"])


def folds(model, protocol):
    "Every fold, and the final model of all imaged patients, which draws the unpaired ones."
    final = ["final"] if protocol == "patient" and model == DRAWS_UNPAIRED else []
    return [*range(N_FOLDS[protocol]), *final]


def models_of(condition, seed):
    "All models have the first training seed; the studied model has every one."
    return [DRAWS_UNPAIRED] if seed else models(condition)


def has_preprint(condition, seed):
    "Is one more model trained, on all but the four test images of the preprint?"
    return SETTINGS["run"]["preprint"] and condition == PREPRINT_CONDITION and not seed


def trainings(condition, seed=""):
    "The training notebooks of a condition: all folds in one, or one each."
    jobs = [(m, p) for m in models_of(condition, seed) for p in PROTOCOLS]
    one = [(DRAWS_UNPAIRED, "preprint")] if has_preprint(condition, seed) else []
    if SETTINGS["run"]["folds_per_run"] == "one":
        jobs, one = [], jobs + one
    names = [f"02_train-{condition}-{m}-{p}{seed}" for m, p in jobs]
    names += [f"02_train-{condition}-{m}-{p}-fold{f}{seed}" for m, p in one for f in folds(m, p)]
    return [EXECUTED.format(name) for name in names]


def condition_parameters(stem, w, **more):
    return parameters(stem, condition=w.condition, **more)


def seed_parameter(w):
    return dict(train_seed=int(w.seed.removeprefix("-seed"))) if w.seed else {}


def train_parameters(w, folds):
    own = dict(model=w.model, protocol=w.protocol, folds=folds, **seed_parameter(w))
    if w.protocol == "preprint":  # all other images train, and none is set aside
        own |= dict(n_folds=N_FOLDS, validation=0.0)
    return condition_parameters("02_train", w, **own)


def images_parameters(stem, w):
    own = dict(models=models_of(w.condition, w.seed), **seed_parameter(w))
    if has_preprint(w.condition, w.seed):
        own["preprint"] = True
    return condition_parameters(stem, w, **own)


def this_fold(w):
    return [f for f in folds(w.model, w.protocol) if str(f) == w.fold]


def each(stem):
    "A notebook executed for every condition, and where it has one, for every training seed."
    seeds = SEEDS if "train_seed" in DEFAULTS[stem] else [""]
    return [EXECUTED.format(f"{stem}-{c}{s}") for c in CONDITIONS for s in seeds]


def rows(name):
    return f"rows/{name}.csv"


wildcard_constraints:
    condition="[a-z]+",
    model="[a-z_]+",
    protocol="[a-z]+",
    fold="[0-9]+|final",
    seed="(-seed[0-9]+)?",


def results(stem):
    "All that a notebook of this stem is executed for."
    if stem == "02_train":
        return [f for c in CONDITIONS for s in SEEDS for f in trainings(c, s)]
    return each(stem) if "condition" in DEFAULTS[stem] else [EXECUTED.format(stem)]


def has_part(stem):
    "Is a notebook that is only asked for part of this run?"
    asked = config.get("audit") and stem in WITH_AUDIT
    return stem in WITHOUT_ASKING or asked or os.path.exists(rows(stem))


def judged():
    "The executed notebooks whose rows the scorecard reads."
    own = [f for stem in STUDY for f in results(stem)]
    return own + [f for stem in ASKED_FOR if has_part(stem) for f in results(stem)]


def as_text(path):
    "A path whose braces are no wildcard."
    return str(path).replace("{", "{{").replace("}", "}}")


rule all:
    input: results(config.get("upto", "08_scorecard"))


rule cohort:
    input: *map(as_text, study_files(COHORT)), **source("01_cohort")
    output: notebook=EXECUTED.format("01_cohort"), rows=rows("01_cohort")
    params: values=parameters("01_cohort")
    log: "logs/01_cohort.log"
    threads: cores("cohort")
    resources: **needs("cohort")
    shell: RUN


rule series:
    input: **source("01a_series")
    output: notebook=EXECUTED.format("01a_series"), rows=rows("01a_series")
    params: values=parameters("01a_series")
    log: "logs/01a_series.log"
    threads: cores("series")
    resources: **needs("series")
    shell: RUN


rule factorization:
    input: EXECUTED.format("01_cohort"), **source("01b_factorization")
    output: notebook=EXECUTED.format("01b_factorization"), rows=rows("01b_factorization")
    params: values=parameters("01b_factorization")
    log: "logs/01b_factorization.log"
    threads: cores("factorization")
    resources: **needs("factorization")
    shell: RUN


rule train:
    input: EXECUTED.format("01_cohort"), **source("02_train")
    output:
        notebook=EXECUTED.format("02_train-{condition}-{model}-{protocol}{seed}"),
        rows=rows("02_train-{condition}-{model}-{protocol}{seed}"),
    params: values=lambda w: train_parameters(w, folds(w.model, w.protocol))
    log: "logs/02_train-{condition}-{model}-{protocol}{seed}.log"
    threads: cores("train")
    resources: **needs("train")
    shell: RUN


rule train_fold:
    input: EXECUTED.format("01_cohort"), **source("02_train")
    output: notebook=EXECUTED.format("02_train-{condition}-{model}-{protocol}-fold{fold}{seed}")
    params: values=lambda w: train_parameters(w, this_fold(w))
    log: "logs/02_train-{condition}-{model}-{protocol}-fold{fold}{seed}.log"
    threads: cores("train_fold")
    resources: **needs("train_fold")
    shell: RUN


rule generate:
    input: lambda w: trainings(w.condition, w.seed), **source("03_generate")
    output:
        notebook=EXECUTED.format("03_generate-{condition}{seed}"),
        rows=rows("03_generate-{condition}{seed}"),
    params: values=lambda w: images_parameters("03_generate", w)
    log: "logs/03_generate-{condition}{seed}.log"
    threads: cores("generate")
    resources: **needs("generate")
    shell: RUN


rule fidelity:
    input: EXECUTED.format("03_generate-{condition}{seed}"), **source("04_fidelity")
    output:
        notebook=EXECUTED.format("04_fidelity-{condition}{seed}"),
        rows=rows("04_fidelity-{condition}{seed}"),
    params: values=lambda w: images_parameters("04_fidelity", w)
    log: "logs/04_fidelity-{condition}{seed}.log"
    threads: cores("fidelity")
    resources: **needs("fidelity")
    shell: RUN


rule released_images:
    input: EXECUTED.format("01_cohort"), **source("04a_released_images")
    output: notebook=EXECUTED.format("04a_released_images"), rows=rows("04a_released_images")
    params: values=parameters("04a_released_images")
    log: "logs/04a_released_images.log"
    threads: cores("released_images")
    resources: **needs("released_images")
    shell: RUN


rule outcomes:
    input: EXECUTED.format("03_generate-{condition}"), **source("05_outcomes")
    output:
        notebook=EXECUTED.format("05_outcomes-{condition}"),
        rows=rows("05_outcomes-{condition}"),
    params: values=lambda w: condition_parameters("05_outcomes", w)
    log: "logs/05_outcomes-{condition}.log"
    threads: cores("outcomes")
    resources: **needs("outcomes")
    shell: RUN


rule survival:
    input: EXECUTED.format("03_generate-{condition}"), **source("06_survival")
    output:
        notebook=EXECUTED.format("06_survival-{condition}"),
        rows=rows("06_survival-{condition}"),
    params: values=lambda w: condition_parameters("06_survival", w)
    log: "logs/06_survival-{condition}.log"
    threads: cores("survival")
    resources: **needs("survival")
    shell: RUN


rule as_released:
    input: EXECUTED.format("03_generate-{condition}"), **source("06a_as_released")
    output:
        notebook=EXECUTED.format("06a_as_released-{condition}"),
        rows=rows("06a_as_released-{condition}"),
    params: values=lambda w: condition_parameters("06a_as_released", w)
    log: "logs/06a_as_released-{condition}.log"
    threads: cores("as_released")
    resources: **needs("as_released")
    shell: RUN


rule controls:
    input: EXECUTED.format("01_cohort"), **source("07_controls")
    output: notebook=EXECUTED.format("07_controls"), rows=rows("07_controls")
    params: values=parameters("07_controls")
    log: "logs/07_controls.log"
    priority: 1  # the first numbers, in the first minute
    threads: cores("controls")
    resources: **needs("controls")
    shell: RUN


rule audit:
    input: EXECUTED.format("03_generate-{condition}"), **source("07a_audit")
    output:
        notebook=EXECUTED.format("07a_audit-{condition}"),
        rows=rows("07a_audit-{condition}"),
    params: values=lambda w: condition_parameters("07a_audit", w)
    log: "logs/07a_audit-{condition}.log"
    threads: cores("audit")
    resources: **needs("audit")
    shell: RUN


rule coverage:
    input: EXECUTED.format("01_cohort"), **source("07b_coverage")
    output: notebook=EXECUTED.format("07b_coverage"), rows=rows("07b_coverage")
    params: values=parameters("07b_coverage")
    log: "logs/07b_coverage.log"
    threads: cores("coverage")
    resources: **needs("coverage")
    shell: RUN


rule learning_curve:
    input: EXECUTED.format("01_cohort"), **source("07c_learning_curve")
    output: notebook=EXECUTED.format("07c_learning_curve"), rows=rows("07c_learning_curve")
    params: values=parameters("07c_learning_curve")
    log: "logs/07c_learning_curve.log"
    threads: cores("learning_curve")
    resources: **needs("learning_curve")
    shell: RUN


rule ablations:
    input: EXECUTED.format("01_cohort"), **source("07d_ablations")
    output: notebook=EXECUTED.format("07d_ablations"), rows=rows("07d_ablations")
    params: values=parameters("07d_ablations")
    log: "logs/07d_ablations.log"
    threads: cores("ablations")
    resources: **needs("ablations")
    shell: RUN


rule repeated:
    input: EXECUTED.format("01_cohort"), **source("07e_repeated")
    output: notebook=EXECUTED.format("07e_repeated"), rows=rows("07e_repeated")
    params: values=parameters("07e_repeated")
    log: "logs/07e_repeated.log"
    threads: cores("repeated")
    resources: **needs("repeated")
    shell: RUN


rule scorecard:
    input:
        judged(),
        **source("08_scorecard")
    output: notebook=EXECUTED.format("08_scorecard"), report="report.html"
    params: values=parameters("08_scorecard", notebooks=sorted(Path(f).stem for f in judged()))
    log: "logs/08_scorecard.log"
    threads: cores("scorecard")
    resources: **needs("scorecard")
    shell: RUN
