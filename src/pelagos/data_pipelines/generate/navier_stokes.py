"""Incompressible Navier-Stokes in two dimensions on the unit torus, pseudo-spectral.

    u_t + div(u u) + grad p = D u + f,    div u = 0,    c_t + div(u c) = D c

Space: Fourier with the 2/3 rule (Canuto et al., Spectral Methods, 2007, ch. 3). The pressure takes
up any gradient, so only u^2 - v^2 and uv are transformed (Basdevant, J. Comput. Phys. 50, 1983):
four real transforms per evaluation, two more with a tracer.
Time: the linear operator D exactly, by an integrating factor, and the rest by the classical
fourth-order Runge-Kutta method (Lawson, SIAM J. Numer. Anal. 4, 1967).

D is ordinary viscosity, -nu |2 pi k|^2, plus the spectral viscosity of Tadmor (SIAM J. Numer. Anal.
26, 1989) in the form of the azeban code that made Poseidon's data (arXiv 2405.19101, app. B):
-eps |2 pi k|^2 Q(k), Q(k) = max(0, 1 - m^2/|k|^2), zero up to |k| = m. Poseidon: m = sqrt(N),
eps = 0.05/N, N = 128, an effective viscosity of 4e-4. The paper's own text of the symbol Q could
not be read here; this is the smooth one of azeban's public source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pelagos.data_pipelines.generate import spectral
from pelagos.data_pipelines.generate.runge_kutta import lawson_step
from pelagos.data_pipelines.generate.spectral import Modes
from pelagos.data_pipelines.generate.stepping import march, per_trajectory

DEFAULT_CFL = 0.8  # stability ends at 2.83 / (2 pi / 3) = 1.35: RK4 on the imaginary axis, 2/3 rule

Forcing = Tensor | Callable[[float], Tensor]


def poseidon_spectral_viscosity(num_points: int) -> float:
    """eps_N = 0.05/N of Poseidon's incompressible data (arXiv 2405.19101, appendix B)."""
    return 0.05 / num_points


def solve_navier_stokes(
    velocity: Tensor,
    times: Sequence[float],
    *,
    viscosity: float | Tensor = 0.0,
    spectral_viscosity: float | Tensor = 0.0,
    tracer: Tensor | None = None,
    tracer_diffusivity: float | Tensor | None = None,
    forcing: Forcing | None = None,
    cfl: float = DEFAULT_CFL,
    max_step: float | None = None,
) -> Tensor:
    """Frames [batch, time, channel, y, x] of the flow: velocity-x, velocity-y (, tracer).

    The initial velocity is made divergence-free and both fields are cut to the modes of the 2/3
    rule, so frame 0 is the start of the discrete flow. The mean velocity is kept.

    Args:
        velocity: [batch, 2, y, x], real, at the nodes j/N; even numbers of points.
        times: increasing; `times[0]` is the time of `velocity`.
        viscosity: nu, one number or [batch].
        spectral_viscosity: eps, one number or [batch]; acts on |k|^2 > N with N the points in x.
        tracer: [batch, 1, y, x] or None.
        tracer_diffusivity: kappa of an ordinary Laplacian for the tracer; None: the velocity's D.
        forcing: acceleration [2, y, x] or [batch, 2, y, x], steady, or a function of time that
            returns [2, y, x]. Its gradient part is taken up by the pressure.
        cfl: Courant number of max(|u|/dx + |v|/dy); below 1.35 for stability.
        max_step: bound on the step, for example to measure the order of the method.

    Returns:
        Frames; a trajectory that stops being finite is NaN from there on.

    Raises:
        ValueError: a shape that does not fit.
    """
    if velocity.ndim != 4 or velocity.shape[1] != 2:
        raise ValueError(
            f"Got velocity of shape {tuple(velocity.shape)}; [batch, 2, y, x] is required."
        )
    scheme = _Scheme.build(
        velocity, viscosity, spectral_viscosity, tracer, tracer_diffusivity, forcing
    )
    fields = velocity if tracer is None else torch.cat((velocity, tracer), dim=1)
    return march(
        scheme.start(fields),
        times,
        cfl=cfl,
        prepare=scheme.prepare,
        step=scheme.step,
        frame=scheme.frame,
        max_step=max_step,
    )


@dataclass(frozen=True)
class _Scheme:
    """Multipliers of one problem; spectra are pairs [n, channel, ky, kx, 2]."""

    modes: Modes
    shear: Tensor  # of u^2 - v^2 in the scalar S
    cross: Tensor  # of uv in S
    to_velocity: Tensor  # [2, ky, kx, 2]: (ky, -kx) / k^2
    gradient: Tensor | None  # [2, ky, kx, 2]: 2 pi (kx, ky), dealiased, for the tracer
    damping: Tensor  # [batch, channel, ky, kx], rates >= 0 of D
    forcing: Tensor | Callable[[float], Tensor] | None  # spectral where steady

    @classmethod
    def build(
        cls,
        velocity: Tensor,
        viscosity: float | Tensor,
        spectral_viscosity: float | Tensor,
        tracer: Tensor | None,
        tracer_diffusivity: float | Tensor | None,
        forcing: Forcing | None,
    ) -> _Scheme:
        batch, _, height, width = velocity.shape
        if tracer is not None and tracer.shape != (batch, 1, height, width):
            raise ValueError(
                f"Got tracer of shape {tuple(tracer.shape)}; the velocity requires "
                f"{(batch, 1, height, width)}."
            )
        modes = Modes.of((height, width), velocity.dtype, velocity.device)
        kept = modes.kept * (2.0 * math.pi)
        laplace = (2.0 * math.pi) ** 2 * modes.square
        high = (2.0 * math.pi) ** 2 * (modes.square - width).clamp_min(0.0)
        nu = per_trajectory(viscosity, velocity, "viscosity").view(-1, 1, 1, 1)
        eps = per_trajectory(spectral_viscosity, velocity, "spectral_viscosity").view(-1, 1, 1, 1)
        damping = nu * laplace + eps * high
        if tracer is not None and tracer_diffusivity is not None:
            kappa = per_trajectory(tracer_diffusivity, velocity, "tracer_diffusivity")
            damping = torch.cat((damping, damping, kappa.view(-1, 1, 1, 1) * laplace), dim=1)
        scheme = cls(
            modes=modes,
            shear=spectral.as_pairs(modes.x * modes.y * kept),
            cross=spectral.as_pairs((modes.y * modes.y - modes.x * modes.x) * kept),
            to_velocity=spectral.as_pairs(torch.stack((modes.y, -modes.x)) * modes.inverse_square),
            gradient=None
            if tracer is None
            else spectral.as_pairs(torch.stack((modes.x, modes.y)) * kept),
            damping=damping,
            forcing=forcing if callable(forcing) else None,
        )
        if forcing is None or callable(forcing):
            return scheme
        return replace(scheme, forcing=scheme.spectral_forcing(forcing))

    def start(self, fields: Tensor) -> Tensor:
        """Dealiased, divergence-free spectra of physical fields [batch, channel, y, x]."""
        pairs = spectral.forward(fields) * spectral.as_pairs(self.modes.kept)
        return torch.cat((self.project(pairs[:, :2]), pairs[:, 2:]), dim=1)

    def project(self, pairs: Tensor) -> Tensor:
        """Leray projection of [n, 2, ky, kx, 2]: subtract k (k . u) / k^2."""
        direction = spectral.as_pairs(torch.stack((self.modes.x, self.modes.y)))
        along = (pairs * direction).sum(1, keepdim=True)
        return pairs - along * (direction * spectral.as_pairs(self.modes.inverse_square))

    def spectral_forcing(self, forcing: Tensor) -> Tensor:
        """Projected spectrum of an acceleration [2, y, x] or [batch, 2, y, x]."""
        expected = (2, *self.modes.shape)
        if tuple(forcing.shape[-3:]) != expected or forcing.ndim not in (3, 4):
            raise ValueError(
                f"Got forcing of shape {tuple(forcing.shape)}; {expected} or "
                f"{('batch', *expected)} is required."
            )
        fields = forcing.to(self.damping).reshape(-1, *expected)
        if fields.shape[0] not in (1, self.damping.shape[0]):
            raise ValueError(
                f"Got forcing for {fields.shape[0]} trajectories; the solver has "
                f"{self.damping.shape[0]}."
            )
        return self.start(fields)

    def slope(self, physical: Tensor, trajectories: list[int], clocks: list[float]) -> Tensor:
        """Everything but D, from physical fields [n, channel, y, x], as pairs."""
        u, v = physical[:, 0], physical[:, 1]
        products = [(u - v) * (u + v), u * v]
        if self.gradient is not None:
            products += [u * physical[:, 2], v * physical[:, 2]]
        pairs = spectral.forward(torch.stack(products, dim=1))
        # The part of -div(uu) across k is (ky, -kx)/k^2 S, S = -i (kx ky A + (ky^2 - kx^2) B).
        scalar = spectral.times_minus_i(pairs[:, 0] * self.shear + pairs[:, 1] * self.cross)
        slope = scalar.unsqueeze(1) * self.to_velocity
        if self.forcing is not None:
            slope = slope + self._force(trajectories, clocks)
        if self.gradient is None:
            return slope
        flux = pairs[:, 2] * self.gradient[0] + pairs[:, 3] * self.gradient[1]
        return torch.cat((slope, spectral.times_minus_i(flux).unsqueeze(1)), dim=1)

    def _force(self, trajectories: list[int], clocks: list[float]) -> Tensor:
        if callable(self.forcing):
            return torch.cat([self.spectral_forcing(self.forcing(time)) for time in clocks])
        assert self.forcing is not None
        return self.forcing if self.forcing.shape[0] == 1 else self.forcing[trajectories]

    def prepare(
        self, state: Tensor, trajectories: list[int], clocks: list[float]
    ) -> tuple[Tensor, Tensor]:
        """First slope of the step, and rates max(|u|/dx + |v|/dy) [n]."""
        physical = spectral.inverse(state, self.modes.shape)
        height, width = self.modes.shape
        speed = physical[:, 0].abs() * float(width) + physical[:, 1].abs() * float(height)
        return self.slope(physical, trajectories, clocks), speed.amax(dim=(-2, -1))

    def step(
        self, state: Tensor, first: Tensor, dt: Tensor, trajectories: list[int], clocks: list[float]
    ) -> Tensor:
        """One integrating-factor RK4 step; `dt` [n] may differ between trajectories."""

        def slope(pairs: Tensor, at: list[float]) -> Tensor:
            return self.slope(spectral.inverse(pairs, self.modes.shape), trajectories, at)

        damping = [self.damping[i] for i in trajectories]
        return lawson_step(state, first, dt, damping, slope, clocks)

    def frame(self, state: Tensor) -> Tensor:
        """Physical fields; + 0.0 turns a negative zero into a zero."""
        return spectral.inverse(state, self.modes.shape) + 0.0
