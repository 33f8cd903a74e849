"""Contrastive losses on representations: pull some pairs together, push others apart."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor
from torch.nn import functional as F

_SELECTIONS = ("global", "hard", "soft", "leaked")
_ORDERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
_SIMILARITIES = ("cosine", *_ORDERS)


def supervised_contrastive(
    z: Tensor,
    z_adv: Tensor,
    y: Tensor,
    pred: Tensor | None = None,
    pred_adv: Tensor | None = None,
    selection: str = "global",
    temperature: float = 0.07,
    similarity: str = "cosine",
    anchor_prediction: str = "own",
    keep_counterpart: bool = True,
    *,
    ids: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Supervised contrastive loss of two views of a batch, with a choice of what is compared.

    Each sample is an anchor twice, in its clean and in its adversarial view (or whatever the two
    views are). It is to be close to its counterpart, the other view of itself, and to its
    positives, and far from its negatives.

    Parameters
    ----------
    z : Tensor of shape (n_samples, n_features)
        Representations of the clean samples, of any length.
    z_adv : Tensor of shape (n_samples, n_features)
        Representations of the attacked samples.
    y : Tensor of shape (n_samples,)
        Classes.
    pred : Tensor of shape (n_samples,), default=None
        Predicted classes of the clean samples; not needed with ``selection="global"``.
    pred_adv : Tensor of shape (n_samples,), default=None
        Predicted classes of the attacked samples.
    selection : {"global", "hard", "soft", "leaked"}, default="global"
        Which positives and negatives take part, see :func:`contrastive_selection`.
    temperature : float, default=0.07
        What similarities are divided by, greater than 0.
    similarity : {"cosine", "l1", "l2", "linf"}, default="cosine"
        Cosine, or the negative distance of the directions (representations of length 1).
    anchor_prediction, keep_counterpart, ids, sample_weight
        See :func:`contrastive_selection`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Sum over the two anchors of each sample. Its mean is twice the mean over all anchors, which
        is what most implementations return.

    Raises
    ------
    ValueError
        If shapes do not agree or a parameter is not valid.

    See Also
    --------
    contrastive_selection : Positives and negatives alone.
    nt_xent : Without classes.

    Notes
    -----
    For an anchor :math:`z_i`, its counterpart :math:`z_i'` and
    :math:`P_i = Z_i^+ \cup \{z_i'\}`,

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{z_j \in P_i} \log
              \frac{\exp(\mathrm{sim}(z_i, z_j) / \tau)}
              {\sum_{z_k \in P_i \cup Z_i^-} \exp(\mathrm{sim}(z_i, z_k) / \tau)}

    At least :math:`\log |P_i|`. No part is held constant: gradients flow to anchors, positives and
    negatives. The thesis [2]_ does not say which similarity its tables were made with.

    References
    ----------
    .. [1] Khosla, P. et al. (2020). Supervised contrastive learning. NeurIPS. Eq. 2.
    .. [2] Bui, A., Le, T., Zhao, H., Montague, P., Camtepe, S. and Phung, D. (2021). Understanding
       and achieving efficient robustness with adversarial supervised contrastive learning.
       arXiv:2101.10027. Eqs. 1 to 3 and Table 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import supervised_contrastive
    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> supervised_contrastive(z, z, torch.tensor([0, 0, 1]), temperature=1.0)
    tensor([2.6359, 2.6359, 1.8097])
    """
    positives, negatives = contrastive_selection(
        y,
        pred,
        pred_adv,
        selection,
        anchor_prediction,
        keep_counterpart,
        ids=ids,
        sample_weight=sample_weight,
    )
    return contrastive_loss(z, z_adv, positives.to(z), negatives.to(z), temperature, similarity)


def contrastive_selection(
    y: Tensor,
    pred: Tensor | None = None,
    pred_adv: Tensor | None = None,
    selection: str = "global",
    anchor_prediction: str = "own",
    keep_counterpart: bool = True,
    *,
    ids: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Positives and negatives of each anchor in a batch of two views.

    Parameters
    ----------
    y : Tensor of shape (n_samples,)
        Classes.
    pred : Tensor of shape (n_samples,), default=None
        Predicted classes of the clean samples; not needed with ``selection="global"``.
    pred_adv : Tensor of shape (n_samples,), default=None
        Predicted classes of the attacked samples.
    selection : {"global", "hard", "soft", "leaked"}, default="global"
        Positives are of the class of the anchor and negatives of another one. Of them take part

        ========  =========================================================================
        global    all
        hard      all positives, and the negatives that are taken for the class of the anchor
        soft      all positives, and the negatives that are taken for what the anchor is
                  taken for
        leaked    the positives and the negatives that are taken for what the anchor is taken
                  for
        ========  =========================================================================
    anchor_prediction : {"own", "clean"}, default="own"
        What an adversarial anchor is taken for: its own prediction, or that of the clean sample.
    keep_counterpart : bool, default=True
        Whether the other view of the anchor is a positive always. Otherwise it is not one in
        "leaked" where the two views are predicted differently, as in the authors' code; an anchor
        that is left without a positive has no loss.
    ids : Tensor of shape (n_samples,), default=None
        Numbers that tell samples apart. A copy of the anchor, of the same number and class, is no
        positive of it, like the anchor itself. None means that all are different.
    sample_weight : Tensor of shape (n_samples,), default=None
        Weights of the samples, so that a sample of weight 2 is a sample and its copy. A factor of
        all weights adds a constant to the loss.

    Returns
    -------
    positives, negatives : Tensor of shape (2 * n_samples, 2 * n_samples)
        How much each member (column) counts for each anchor (row): 1 or 0, or the weights. Clean
        samples come first. The counterpart is among the positives, so that ``positives.sum(1)``
        counts it.

    Raises
    ------
    ValueError
        If predictions are missing, shapes do not agree or a parameter is not valid.

    References
    ----------
    .. [1] Bui, A., Le, T., Zhao, H., Montague, P., Camtepe, S. and Phung, D. (2021). Understanding
       and achieving efficient robustness with adversarial supervised contrastive learning.
       arXiv:2101.10027. Table 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import contrastive_selection
    >>> y = torch.tensor([0, 0, 1])
    >>> positives, negatives = contrastive_selection(y)
    >>> positives.sum(1)
    tensor([3., 3., 1., 3., 3., 1.])
    >>> _, negatives = contrastive_selection(y, y, torch.tensor([0, 1, 1]), "hard")
    >>> negatives.sum(1)  # one sample of class 0 is taken for a 1
    tensor([0., 0., 1., 0., 0., 1.])
    """
    if selection not in _SELECTIONS:
        raise ValueError(f"selection must be one of {_SELECTIONS}, got {selection!r}.")
    if anchor_prediction not in ("own", "clean"):
        raise ValueError(f"anchor_prediction must be 'own' or 'clean', got {anchor_prediction!r}.")
    n = len(y)
    if selection != "global":
        for name, value in (("pred", pred), ("pred_adv", pred_adv)):
            if value is None or value.shape != (n,):
                raise ValueError(
                    f"selection={selection!r} needs {name}, predicted classes of shape ({n},), got "
                    f"{None if value is None else tuple(value.shape)}."
                )
    label = y.repeat(2)
    positive = label[:, None] == label
    negative = ~positive
    kept = True
    if selection != "global":
        member = torch.cat([pred, pred_adv])
        anchor = member if anchor_prediction == "own" else pred.repeat(2)
        if selection == "hard":
            negative &= label[:, None] == member
        else:
            negative &= anchor[:, None] == member
        if selection == "leaked":
            positive &= anchor[:, None] == member
            kept = keep_counterpart | (pred == pred_adv).repeat(2)
    ids = torch.arange(n, device=y.device) if ids is None else ids
    own = ((ids[:, None] == ids) & (y[:, None] == y)).repeat(2, 2)
    view = torch.arange(2 * n, device=y.device) >= n
    same_view = view[:, None] == view
    counterpart = own & ~same_view
    if kept is not True:
        counterpart = counterpart & kept[:, None]
    positive = (positive & ~own) | counterpart
    mass = torch.ones(n, device=y.device) if sample_weight is None else sample_weight
    mass = mass.repeat(2)
    return positive * mass, negative * mass


def contrastive_loss(
    z: Tensor,
    z_adv: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float = 0.07,
    similarity: str = "cosine",
) -> Tensor:
    """Contrastive loss with given positives and negatives.

    Parameters
    ----------
    z, z_adv : Tensor of shape (n_samples, n_features)
        Representations of the two views.
    positives, negatives : Tensor of shape (2 * n_samples, 2 * n_samples)
        How much each member (column) counts for each anchor (row), not negative; as
        :func:`contrastive_selection` returns them.
    temperature, similarity
        As in :func:`supervised_contrastive`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Sum over the two anchors of each sample, see :func:`supervised_contrastive`. An anchor
        without positives adds nothing.

    Raises
    ------
    ValueError
        If shapes do not agree or a parameter is not valid.

    Examples
    --------
    One positive and one negative, as similar as each other:

    >>> import torch
    >>> from robustsk.losses import contrastive_loss
    >>> z = torch.tensor([[1.0, 0.0]])
    >>> one, none = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(2, 2)
    >>> contrastive_loss(z, z, one, one)
    tensor([1.3863])
    >>> contrastive_loss(z, z, one, none)
    tensor([0.6931])
    """
    if z.ndim != 2 or z.shape != z_adv.shape:
        raise ValueError(
            "z and z_adv must have one shape (n_samples, n_features), got "
            f"{tuple(z.shape)} and {tuple(z_adv.shape)}."
        )
    if positives.shape != (2 * len(z),) * 2:
        raise ValueError(
            f"{len(z)} samples in two views need classes and selections for {len(z)} samples, got "
            f"positives of shape {tuple(positives.shape)}."
        )
    views = torch.cat([z, z_adv])
    scores = _similarity(views, views, similarity) / _check_temperature(temperature)
    mass = positives + negatives
    count = positives.sum(1)
    # an anchor that is compared with nothing would have a gradient of nan
    reference = torch.logsumexp(
        torch.where(mass.sum(1, keepdim=True) > 0, mass.log(), 0.0) + scores, 1
    )
    mean = (positives * scores).sum(1) / torch.where(count > 0, count, 1.0)
    # Eqs. 1 and 2 of Bui et al. for the clean and the adversarial anchors, Eq. 3 their sum
    return torch.where(count > 0, reference - mean, 0.0).reshape(2, -1).sum(0)


def nt_xent(
    z: Tensor, z_adv: Tensor, temperature: float = 0.07, similarity: str = "cosine"
) -> Tensor:
    """Self-supervised contrastive loss of two views of a batch.

    The one positive of an anchor is the other view of the same sample; all views of the other
    samples are negatives.

    Parameters
    ----------
    z, z_adv : Tensor of shape (n_samples, n_features)
        Representations of the two views.
    temperature, similarity
        As in :func:`supervised_contrastive`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Sum over the two anchors of each sample.

    See Also
    --------
    supervised_contrastive : Samples of the same class are positives too.

    References
    ----------
    .. [1] Chen, T., Kornblith, S., Norouzi, M. and Hinton, G. (2020). A simple framework for
       contrastive learning of visual representations. ICML. Eq. 1.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import nt_xent
    >>> z = torch.eye(2)
    >>> nt_xent(z, z, temperature=1.0)  # 2 * (log(e + 1 + 1) - 1)
    tensor([1.1029, 1.1029])
    """
    y = torch.arange(len(z), device=z.device)
    return supervised_contrastive(z, z_adv, y, temperature=temperature, similarity=similarity)


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor,
    temperature: float = 0.07,
    similarity: str = "cosine",
) -> Tensor:
    r"""InfoNCE loss: tell the positive of each anchor from negatives.

    Parameters
    ----------
    anchor : Tensor of shape (n_samples, n_features)
        Representations.
    positive : Tensor of shape (n_samples, n_features)
        What each is to be close to.
    negatives : Tensor of shape (n_negatives, n_features) or (n_samples, n_negatives, n_features)
        What they are to be far from: the same for all anchors, or other ones for each.
    temperature, similarity
        As in :func:`supervised_contrastive`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Not negative.

    Raises
    ------
    ValueError
        If shapes do not agree or a parameter is not valid.

    Notes
    -----
    .. math:: -\log \frac{e^{\mathrm{sim}(a, p) / \tau}}
              {e^{\mathrm{sim}(a, p) / \tau} + \sum_k e^{\mathrm{sim}(a, n_k) / \tau}}

    References
    ----------
    .. [1] van den Oord, A., Li, Y. and Vinyals, O. (2018). Representation learning with
       contrastive predictive coding. arXiv:1807.03748. Eq. 4.
    .. [2] Bui, T.-A. (2023). Enhancing adversarial robustness: representation, ensemble, and
       distribution approaches. PhD thesis, Monash University. Eq. 2.27.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import info_nce
    >>> a = torch.tensor([[1.0, 0.0]])
    >>> info_nce(a, a, torch.tensor([[0.0, 1.0]]), temperature=1.0)  # log(1 + 1 / e)
    tensor([0.3133])
    """
    if anchor.ndim != 2 or anchor.shape != positive.shape:
        raise ValueError(
            "anchor and positive must have one shape (n_samples, n_features), got "
            f"{tuple(anchor.shape)} and {tuple(positive.shape)}."
        )
    temperature = _check_temperature(temperature)
    near = _similarity(anchor[:, None], positive[:, None], similarity)[:, 0]
    if negatives.ndim == 2:
        far = _similarity(anchor, negatives, similarity)
    else:
        far = _similarity(anchor[:, None], negatives, similarity)[:, 0]
    scores = torch.cat([near, far], 1) / temperature
    return torch.logsumexp(scores, 1) - scores[:, 0]


def triplet_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0, p: float = 2
) -> Tensor:
    r"""Triplet loss: the positive is to be closer than the negative, by a margin.

    Parameters
    ----------
    anchor, positive, negative : Tensor of shape (n_samples, n_features)
        Representations.
    margin : float, default=1.0
        In units of the distance.
    p : float, default=2
        Order of the norm that measures distances; infinity is allowed.

    Returns
    -------
    Tensor of shape (n_samples,)
        Not negative; zero where the order is right by the margin.

    Raises
    ------
    ValueError
        If the shapes do not agree.

    Notes
    -----
    .. math:: \max(0, m + \lVert a - p \rVert - \lVert a - n \rVert)

    References
    ----------
    .. [1] Schroff, F., Kalenichenko, D. and Philbin, J. (2015). FaceNet: a unified embedding for
       face recognition and clustering. CVPR. Eq. 3, with squared distances.
    .. [2] Bui, T.-A. (2023). Enhancing adversarial robustness: representation, ensemble, and
       distribution approaches. PhD thesis, Monash University. Eq. 2.26.

    Examples
    --------
    >>> import torch
    >>> from robustsk.losses import triplet_loss
    >>> a, b, c = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[1.5]])
    >>> triplet_loss(a, b, c)
    tensor([0.5000])
    """
    if not anchor.shape == positive.shape == negative.shape or anchor.ndim != 2:
        raise ValueError(
            "anchor, positive and negative must have one shape (n_samples, n_features), got "
            f"{tuple(anchor.shape)}, {tuple(positive.shape)} and {tuple(negative.shape)}."
        )
    near, far = (
        torch.linalg.vector_norm(anchor - other, p, dim=1) for other in (positive, negative)
    )
    return F.relu(margin + near - far)


def _similarity(a, b, kind):
    """Return the similarities of all rows of `a` to all rows of `b`."""
    if kind not in _SIMILARITIES:
        raise ValueError(f"similarity must be one of {_SIMILARITIES}, got {kind!r}.")
    a, b = F.normalize(a, dim=-1, eps=1e-12), F.normalize(b, dim=-1, eps=1e-12)
    if kind == "cosine":
        return a @ b.transpose(-1, -2)
    return -torch.cdist(a, b, p=_ORDERS[kind], compute_mode="donot_use_mm_for_euclid_dist")


def _check_temperature(value):
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"temperature must be a finite number greater than 0, got {value!r}.")
    return value
