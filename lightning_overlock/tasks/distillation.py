"""Distillation: a classifier learns from a teacher's logits and features besides the labels.

Sources: Hinton, Vinyals and Dean (arXiv 1503.02531), section 2, for the temperature; DeiT (arXiv
2012.12877), equation 2, for the weights of the parts; FitNets (arXiv 1412.6550) for a learned map
from the student's features to the teacher's, here linear and between the pooled features.
"""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lightning_overlock.backbones.create import create_backbone, fitted
from lightning_overlock.backbones.weights import classes_of, start_from
from lightning_overlock.data.normalisation import Normalisation
from lightning_overlock.errors import InputError, did_you_mean, printable
from lightning_overlock.runs.checkpoint import checkpoint_in, read_checkpoint
from lightning_overlock.tasks.load import task_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The part of a task's state dict that training alone has: the linear map.
PREFIX = "distillation."


class Teacher(NamedTuple):
    """A frozen network that another one learns from.

    Attributes:
        name: What it is called.
        model: A timm model in evaluation mode.
        class_names: Its classes; None of one of timm's models, which do not name them.
        normalisation: That of its images.
    """

    name: str
    model: Any
    class_names: list[str] | None
    normalisation: Normalisation


def _is_checkpoint(teacher: str) -> bool:
    """Tell whether a teacher is a file or a run's folder; otherwise it is one of timm's models.

    Raises:
        InputError: It is neither.
    """
    if teacher.endswith(".ckpt") or Path(teacher).expanduser().exists():
        return True
    if not teacher.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(teacher):
        near = did_you_mean(teacher.partition(".")[0], timm.list_models())
        raise InputError(
            f"model.teacher {printable(teacher)}: neither a checkpoint, nor a run's folder, nor a "
            f"model of timm.{near}"
        )
    return False


def load_teacher(teacher: str, init_from: str | None) -> Teacher:
    """Return a teacher, with its weights.

    Args:
        teacher: A checkpoint of a classifier, a run's folder, or the name of a timm model.
        init_from: A file of weights for the timm model; None takes timm's own.

    Raises:
        InputError: There is none, or it has no weights or is no classifier.
    """
    if _is_checkpoint(teacher):
        path = checkpoint_in(Path(teacher).expanduser())
        task: Any = task_of(read_checkpoint(path), path)
        if not hasattr(task.model, "forward_head"):
            raise InputError(
                f"model.teacher {teacher}: found a {type(task).__name__}, expected a classifier."
            )
        return Teacher(
            teacher, task.model, task.class_names, Normalisation.of(task.image_transform)
        )
    options: dict[str, Any] = {}
    if init_from is not None:
        options["num_classes"] = classes_of(Path(init_from), teacher) or 0
    model: Any = create_backbone(teacher, {}, **options)
    start_from(model, teacher, {}, init_from, None)
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).double().view(-1, 1, 1) for key in ("mean", "std"))
    return Teacher(teacher, model.eval(), None, Normalisation(mean, std))


class Distillation(nn.Module):
    """What a teacher adds to a student's loss.

    The teacher is no part of the state dict: it is frozen, and read again when a run is continued.
    The linear map between the features is trained and saved.

    Args:
        teacher: The teacher.
        student: The student, a timm model.
        class_names: The student's classes.
        normalisation: That of the student's images.
        features: Whether features are compared.
        logits: Whether logits are compared.
        temperature: That of the logits.
        dtype: What the teacher computes in.

    Raises:
        InputError: The teacher has no classifier, or one for other classes.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Any,
        class_names: list[str],
        normalisation: Normalisation,
        *,
        features: bool,
        logits: bool,
        temperature: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.normalisation = normalisation
        self.dtype = dtype
        self.order = _order(teacher, class_names) if logits else None
        # In a tuple it is no submodule: neither saved, nor averaged, nor trained.
        self._teacher = (teacher._replace(model=_frozen(teacher.model, dtype)),)
        self.feature_map = (
            nn.Linear(student.head_hidden_size, teacher.model.head_hidden_size)
            if features
            else None
        )
        count = sum(weight.numel() for weight in teacher.model.parameters()) / 1e6
        rank_zero_info(
            f"Teacher: {teacher.name}, {count:.3g} M parameters in {str(dtype)[6:]}; each step "
            "runs it once, forwards"
        )

    @torch.no_grad()
    def teach(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the teacher's logits (B, classes) and pooled features (B, D) in float32.

        Args:
            images: (B, 3, H, W), normalised as the student's.
        """
        (teacher,) = self._teacher
        model = teacher.model.to(images.device)
        images = self.normalisation.to_other(images.float(), teacher.normalisation)
        images = fitted(model, images)
        with torch.autocast(images.device.type, enabled=False):
            maps = model.forward_features(images.to(self.dtype))
            logits = features = None
            if self.order is not None:
                order = torch.tensor(self.order, device=images.device)
                logits = model.forward_head(maps)[:, order].float()
            if self.feature_map is not None:
                features = model.forward_head(maps, pre_logits=True).flatten(1).float()
        return logits, features

    def forward(
        self, images: Tensor, logits: Tensor, features: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the loss of the logits and that of the features; None of what is not compared.

        Args:
            images: (B, 3, H, W), normalised as the student's.
            logits: (B, classes), the student's.
            features: (B, C), what its classifier sees.
        """
        targets, wanted = self.teach(images)
        of_logits = of_features = None
        if targets is not None:
            of_logits = logit_loss(logits, targets, self.temperature)
        if wanted is not None and features is not None and self.feature_map is not None:
            of_features = feature_loss(self.feature_map(features), wanted)
        return of_logits, of_features


def logit_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(targets / T) || softmax(logits / T)), the mean over the batch.

    Args:
        logits: (B, classes), the student's.
        targets: (B, classes), the teacher's.
        temperature: T.
    """
    own = F.log_softmax(logits.float() / temperature, dim=1)
    other = F.log_softmax(targets / temperature, dim=1)
    return temperature**2 * F.kl_div(own, other, reduction="batchmean", log_target=True)


def feature_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Return one less the cosine between features (B, D) and the teacher's, the mean of all.

    Args:
        features: (B, D), the student's, mapped.
        targets: (B, D).
    """
    return 1 - F.cosine_similarity(features.float(), targets, dim=1).mean()


def _frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model.eval().requires_grad_(False).to(dtype)


def _order(teacher: Teacher, class_names: list[str]) -> list[int]:
    """Return the place of each class of the student among the teacher's."""
    found = int(teacher.model.num_classes)
    if teacher.class_names is None:
        if found != len(class_names):
            raise InputError(
                f"model.teacher {teacher.name} has {found} classes, the data {len(class_names)}\n"
                "expected a checkpoint trained on these classes, or model.teacher_weight 0 and "
                "model.teacher_features above 0"
            )
        return list(range(found))
    missing = [name for name in class_names if name not in teacher.class_names]
    if missing:
        raise InputError(
            f"model.teacher {teacher.name} does not know {len(missing)} of the {len(class_names)} "
            f"classes, such as '{printable(missing[0])}'\n"
            "expected a checkpoint trained on them, or model.teacher_weight 0 and "
            "model.teacher_features above 0"
        )
    return [teacher.class_names.index(name) for name in class_names]
