"""Options of a task that exclude each other, or that change nothing without another one."""

from lightning_overlock.data.combinations import Need, Options, warn_of_unused
from lightning_overlock.errors import InputError


def _warms_up(options: Options) -> bool:
    # With 0 steps the warm-up of a recipe is turned off on purpose.
    return bool(options["warmup_epochs"] or options["warmup_steps"] is not None)


def _decays_smoothly(options: Options) -> bool:
    return bool(options["schedule"] != "multistep")


def _has_teacher(options: Options) -> bool:
    return options["teacher"] is not None


NEEDS: dict[str, Need] = {
    "gamma": ("schedule multistep", lambda options: options["schedule"] == "multistep"),
    "power": ("schedule poly", lambda options: options["schedule"] == "poly"),
    "min_lr": ("schedule cosine or poly", _decays_smoothly),
    "cooldown_epochs": ("schedule cosine or poly", _decays_smoothly),
    "warmup_lr": (
        "warmup_epochs or warmup_steps, and no warmup_factor",
        lambda options: _warms_up(options) and options["warmup_factor"] is None,
    ),
    "warmup_factor": ("warmup_epochs or warmup_steps", _warms_up),
    "mixup_prob": ("mixup or cutmix", lambda options: options["mixup"] or options["cutmix"]),
    "mixup_switch_prob": (
        "mixup and cutmix",
        lambda options: options["mixup"] and options["cutmix"],
    ),
    "teacher_init_from": ("teacher", _has_teacher),
    "teacher_weight": ("teacher", _has_teacher),
    "teacher_temperature": (
        "teacher, and teacher_weight above 0",
        lambda options: _has_teacher(options) and options["teacher_weight"] > 0,
    ),
    "teacher_features": ("teacher", _has_teacher),
    "teacher_dtype": ("teacher", _has_teacher),
    "window": ("inference slide", lambda options: options["inference"] == "slide"),
    "stride": ("inference slide", lambda options: options["inference"] == "slide"),
}


def check_combinations(task: type, options: Options) -> None:
    """Refuse options that exclude each other; warn of options that change nothing.

    Args:
        task: The task's class, whose signature has the defaults.
        options: All of its options by name.

    Raises:
        InputError: Two options exclude each other.
    """
    schedule, milestones = options["schedule"], options["milestones"]
    if (schedule == "multistep") != bool(milestones):
        raise InputError(
            f"schedule is {schedule} and milestones is {milestones}\n"
            "expected milestones with schedule multistep, and only there"
        )
    if options["warmup_steps"] is not None and options["warmup_epochs"]:
        raise InputError("warmup_epochs and warmup_steps are both given, expected one of them")
    if options["pretrained"] and options["init_from"] is not None:
        raise InputError("pretrained and init_from are both given, expected one of them")
    if options.get("teacher") and not (options["teacher_weight"] or options["teacher_features"]):
        raise InputError("teacher is given, but teacher_weight and teacher_features are both 0")
    warn_of_unused("model", task, options, NEEDS)
