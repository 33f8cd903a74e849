"""The ablations of the sources as parameter grids for a grid search."""

from __future__ import annotations


def spat_sensitivity_grid() -> list[dict]:
    """Return the settings of SPAT's scale, alpha and beta, one varied at a time.

    Returns
    -------
    list of dict
        For a search over :class:`SPATClassifier`.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Table 3.6.

    Examples
    --------
    >>> from sklearn.model_selection import ParameterGrid
    >>> from robustsk.defenses import spat_sensitivity_grid
    >>> len(ParameterGrid(spat_sensitivity_grid()))
    13
    """
    return [
        {"alpha": [0.0, 0.2, 0.4, 0.6]},
        {"beta": [0.0, 0.2, 0.4, 0.6]},
        {"s": [1.0, 3.0, 5.0, 8.0, 10.0]},
    ]


def spat_component_grid() -> list[dict]:
    """Return the settings that take SPAT apart, down to TRADES.

    Returns
    -------
    list of dict
        For a search over :class:`SPATClassifier`, in the order of the tables:
        SP-NCE with the self-paced consistency, NCE with it, SP-NCE with the
        divergence, NCE with it; SP-CE with the self-paced consistency, and TRADES.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Tables 3.7 and 3.8.

    Examples
    --------
    >>> from sklearn.model_selection import ParameterGrid
    >>> from robustsk.defenses import spat_component_grid
    >>> ParameterGrid(spat_component_grid())[3]
    {'self_paced': False, 'head': 'cosine', 'consistency': 'kl'}
    """
    parts = [
        ("cosine", True, "self_paced"),
        ("cosine", False, "self_paced"),
        ("cosine", True, "kl"),
        ("cosine", False, "kl"),
        ("linear", True, "self_paced"),
        ("linear", False, "kl"),
    ]
    return [
        {"head": [head], "self_paced": [paced], "consistency": [consistency]}
        for head, paced, consistency in parts
    ]


def dra_grid() -> dict:
    """Return the shares of features that DRA changes, for any estimator trained with it.

    Returns
    -------
    dict
        For a search over an estimator with ``adversary=DRA(...)``.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Table 4.6 and Fig. 4.4.

    Examples
    --------
    >>> from robustsk.defenses import dra_grid
    >>> sorted(dra_grid())
    ['adversary__proportion']
    """
    return {"adversary__proportion": [0.0, 1 / 6, 1 / 3, 1 / 2, 1.0]}


def trade_off_grid(name: str = "lam") -> dict:
    """Return the weights at which TRADES and adversarial regularisation were compared.

    Parameters
    ----------
    name : str, default="lam"
        The parameter: "lam" for :class:`AdversarialRegularizationClassifier`,
        "beta" for :class:`TRADESClassifier`.

    Returns
    -------
    dict
        The source's row for 0 is :class:`PGDATClassifier` in both cases, and
        not TRADES without its divergence, which is natural training.

    References
    ----------
    J. Zhang (2019), "Enhancing adversarial robustness of deep neural
    networks", MEng thesis, MIT, Tables 4.1 and 4.2.

    Examples
    --------
    >>> from robustsk.defenses import trade_off_grid
    >>> trade_off_grid("beta")
    {'beta': [0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 3.0, 5.0]}
    """
    return {name: [0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 3.0, 5.0]}
