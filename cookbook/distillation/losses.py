"""What a student can be asked to imitate, as short pure functions (lesson 06).

Every function returns a scalar: the mean over the batch, differentiable with respect to the student. The
teacher's side must carry no gradient. 16-bit inputs are computed in float32; float64 stays.

Contrastive distillation (CRD, Tian et al., arXiv 1910.10699) is left out: it keeps a memory of the features of every training
image, and by the figures in the decoupled loss's paper (arXiv 2203.08679, ResNet-56 to ResNet-20 on CIFAR-100) that loss
gains more with the logits alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cookbook.errors import UsageError


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Return Hinton's distillation loss, T² · KL(p ‖ q) with p = softmax(teacher / T) and q = softmax(student / T).

    Its gradient with respect to a student's logit is T · (q − p): softening divides both the logits and
    their derivative by T, so that T² keeps its size in step with that of the hard labels. For large T,
    q − p tends to (s − t) / (T · K) with s and t the logits less their means over the K classes, and the
    loss to the sum of (s − t)² / (2 · K): half of `logit_mse` with ``centered=True``.

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531, sections 2 and 2.1. KL is a sum over classes and a
    mean over images (``batchmean``); ``mean`` divides by the classes as well and is not the KL.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        temperature: positive; 1 leaves the probabilities as they are.

    Raises:
        UsageError: the shapes differ, the teacher carries gradients, or the temperature is not positive.
    """
    student, teacher = _logits(student, teacher)
    require_temperature(temperature)
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def logit_mse(student: Tensor, teacher: Tensor, *, centered: bool = False) -> Tensor:
    """Return the mean squared difference of the logits, over images and classes.

    Source: Ba and Caruana, arXiv 1312.6184; compared with the KL by Kim et al., arXiv 2105.08919.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        centered: subtract each image's mean over the classes first: no softmax can see it.

    Raises:
        UsageError: the shapes differ, or the teacher carries gradients.
    """
    student, teacher = _logits(student, teacher)
    if centered:
        student, teacher = (logits - logits.mean(1, keepdim=True) for logits in (student, teacher))
    return F.mse_loss(student, teacher)


def decoupled_parts(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Split the KL of each image into what concerns the labelled class and what concerns the others.

    Let p_t be the teacher's probability of the labelled class and p̂ its probabilities among the others,
    p_i = (1 − p_t) · p̂_i; likewise q for the student. Put into Σ p · log(p / q), this gives exactly
    KL = TCKD + (1 − p_t) · NCKD, where TCKD compares (p_t, 1 − p_t) and NCKD compares p̂. A confident teacher
    has a small 1 − p_t, and silences what it knows about the others.

    Source: Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679, section 3.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        labels: int64 (B,).
        temperature: positive.

    Returns:
        TCKD, NCKD and p_t, each (B,), without the factor T².

    Raises:
        UsageError: as in `soft_targets`, or there is not one label an image.
    """
    student, teacher = _logits(student, teacher)
    require_temperature(temperature)
    if labels.shape != student.shape[:1] or labels.dtype != torch.int64:
        raise UsageError(
            f"The labels are {labels.dtype} of shape {tuple(labels.shape)}: pass one int64 label for each of "
            f"the {len(student)} images."
        )
    q_target, q_others, q_among = _target_and_others(student / temperature, labels)
    p_target, p_others, p_among = _target_and_others(teacher / temperature, labels)
    target = p_target.exp() * (p_target - q_target) + p_others.exp() * (p_others - q_others)
    among = (p_among.exp() * (p_among - q_among)).sum(1)
    return target, among, p_target.exp()


def decoupled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, *, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Return T² · (alpha · TCKD + beta · NCKD), the mean over the images of the parts that `decoupled_parts` explains.

    Source: Zhao et al., arXiv 2203.08679, equation 7; the defaults are its values for CIFAR-100 with ResNets.

    Raises:
        UsageError: as in `decoupled_parts`.
    """
    target, among, _ = decoupled_parts(student, teacher, labels, temperature)
    return (alpha * target + beta * among).mean() * temperature**2


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of two attention maps: where the network's activations are strong.

    A map is the mean over channels of the squared activations, flattened, of length 1. The number of
    channels may differ. The loss lies between 0 and 2.

    Source: Zagoruyko and Komodakis, arXiv 1612.03928, equation 2, with the square of the distance.

    Args:
        student: activations (B, C, H, W).
        teacher: activations (B, D, H, W).

    Raises:
        UsageError: other shapes, or the teacher carries gradients.
    """
    student, teacher = _features(student, teacher)
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] != teacher.shape[2:]:
        raise UsageError(_unlike("Attention maps need activations (B, C, H, W) of one height and width", student, teacher))
    one, other = (F.normalize(maps.square().mean(1).flatten(1), dim=1) for maps in (student, teacher))
    return (one - other).square().sum(1).mean()


def hint(regressed: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference between the student's regressed activations and the teacher's.

    The regressor, a 1×1 convolution or a linear layer that is trained along and thrown away, brings the
    student's channels to the teacher's number; `distill` makes it.

    Source: Romero et al., FitNets, arXiv 1412.6550, equation 3; there in a stage before the distillation.

    Args:
        regressed: any shape (B, …).
        teacher: the same shape.

    Raises:
        UsageError: the shapes differ, or the teacher carries gradients.
    """
    regressed, teacher = _features(regressed, teacher)
    if regressed.shape != teacher.shape:
        raise UsageError(_unlike("A hint needs activations of one shape", regressed, teacher))
    return F.mse_loss(regressed, teacher)


def relational(student: Tensor, teacher: Tensor, *, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """Return how much the geometry of a batch differs: distances of pairs, and angles of triplets.

    Distances are divided by their mean, and the angle at j between i and k enters by its cosine, so that
    size, rotation and number of dimensions do not matter. Differences go through Huber's loss.

    Source: Park et al., Relational Knowledge Distillation, arXiv 1904.05068, section 3.2.

    Args:
        student: activations (B, …), flattened to (B, D); B at least 3.
        teacher: activations (B, …).
        distance: weight of the distances.
        angle: weight of the angles; memory grows with B³.

    Raises:
        UsageError: fewer than three images, or the teacher carries gradients.
    """
    student, teacher = _features(student, teacher)
    if len(student) < 3:
        raise UsageError(f"{len(student)} images have no angles: use batches of 3 or more.")
    student, teacher = student.flatten(1), teacher.flatten(1)
    loss = distance * F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))
    return loss + angle * F.smooth_l1_loss(_angles(student), _angles(teacher))


def require_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive.

    Raises:
        UsageError: it is not.
    """
    if not 0 < temperature < float("inf"):
        raise UsageError(f"The temperature is {temperature}: use a positive number, such as 4.")


def _relative_distances(points: Tensor) -> Tensor:
    distances = F.pdist(points)
    return distances / distances.mean().clamp_min(1e-12)


def _angles(points: Tensor) -> Tensor:
    """Return the cosine at point j between i and k, (B, B, B) in the order j, i, k."""
    unit = F.normalize(points[None] - points[:, None], dim=2, eps=1e-6)
    return unit @ unit.mT


def _target_and_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithms of the labelled class's probability, of the others' sum, and of each among the others."""
    images, classes = logits.shape
    labelled = F.one_hot(labels, classes).bool()
    others = logits[~labelled].view(images, classes - 1)
    whole = torch.logsumexp(logits, 1)
    return logits[labelled] - whole, torch.logsumexp(others, 1) - whole, F.log_softmax(others, 1)


def _logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = _features(student, teacher)
    if student.ndim != 2 or student.shape != teacher.shape:
        raise UsageError(
            f"The student gives {_shape(student)} and the teacher {_shape(teacher)}: both must give logits "
            "(B, classes) for the same classes."
        )
    return student, teacher


def _features(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse a teacher that would be trained as well, and batches of unequal size."""
    if teacher.requires_grad:
        raise UsageError("The teacher's output carries gradients: compute it under torch.no_grad(), or detach it.")
    if student.shape[:1] != teacher.shape[:1]:
        raise UsageError(_unlike("Student and teacher must see the same images", student, teacher))
    return _full(student), _full(teacher)


def _full(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _unlike(need: str, student: Tensor, teacher: Tensor) -> str:
    return f"{need}, not {_shape(student)} from the student and {_shape(teacher)} from the teacher: choose other modules."


def _shape(values: Tensor) -> str:
    return str(tuple(values.shape))
