"""The HLLC approximate Riemann solver for the Euler equations of an ideal gas.

Toro, Riemann Solvers and Numerical Methods for Fluid Dynamics (2009), ch. 10, with the wave speeds
of Einfeldt (SIAM J. Numer. Anal. 25, 1988), for which HLLC keeps density and pressure positive
(Batten et al., SIAM J. Sci. Comput. 18, 1997). Every operation rounds once per element, so the
bits of a face do not depend on its position in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hllc_flux(left: Tensor, right: Tensor, gamma: float | Tensor) -> Tensor:
    """Flux through faces from primitive states on both sides.

    Args:
        left, right: [4, ...]: density, velocity along the normal, velocity across it, pressure.
        gamma: ratio of specific heats, one number or of the shape of a component.

    Returns:
        [4, ...]: flux of mass, normal momentum, transverse momentum, energy.
    """
    rho_l, u_l, _, p_l = left
    rho_r, u_r, _, p_r = right
    slow, fast = _einfeldt_speeds(rho_l, u_l, p_l, rho_r, u_r, p_r, gamma)
    mass_l, mass_r = rho_l * (slow - u_l), rho_r * (fast - u_r)
    contact = (p_r - p_l + (mass_l * u_l - mass_r * u_r)) / (mass_l - mass_r)
    from_left = contact >= 0.0
    rho, u, v, p = torch.where(from_left, left, right)
    wave = torch.where(from_left, slow, fast)
    mass = torch.where(from_left, mass_l, mass_r)
    # Zero where the fan lies wholly on one side: the flux is then that of the upwind state.
    reach = torch.where(from_left, slow.clamp_max(0.0), fast.clamp_min(0.0))
    rho_star = mass / (wave - contact)
    # F + reach (U* - U), U* = rho* (1, contact, v, e + (contact - u)(contact + p / mass)), written
    # with the mass flux and `push`, the part of the momentum flux that the star region adds.
    mass_flux = rho * u + reach * (rho_star - rho)
    push = reach * rho_star * (contact - u)
    specific_energy = p / rho * (1.0 / (gamma - 1.0)) + (u * u + v * v) * 0.5
    return torch.stack(
        (
            mass_flux,
            mass_flux * u + (p + push),
            mass_flux * v,
            mass_flux * specific_energy + (p * u + push * (contact + p / mass)),
        )
    )


def _einfeldt_speeds(
    rho_l: Tensor,
    u_l: Tensor,
    p_l: Tensor,
    rho_r: Tensor,
    u_r: Tensor,
    p_r: Tensor,
    gamma: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Slowest and fastest signal speed: one-sided ones and those of the Roe average."""
    square_l, square_r = p_l * gamma / rho_l, p_r * gamma / rho_r
    root_l, root_r = rho_l.sqrt(), rho_r.sqrt()
    share = root_r / (root_l + root_r)
    jump = u_r - u_l
    u_roe = u_l + share * jump
    excess = jump * jump * 0.5 * (1.0 - share) + (square_r - square_l)
    c_roe = (square_l + share * excess).sqrt()
    slow = torch.minimum(u_l - square_l.sqrt(), u_roe - c_roe)
    fast = torch.maximum(u_r + square_r.sqrt(), u_roe + c_roe)
    return slow, fast
