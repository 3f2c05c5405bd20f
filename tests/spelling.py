"""The mathematics as the golden tests call it: solvers by keywords, ``published_behaviour`` for what systems choose.

What ``published_behaviour`` stands for is taken from each system's ``published.py``, so that the golden tests, which
compare with numbers of the public code, check those choices as well.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import diffusion.continuous.bound as bound
import diffusion.continuous.dequantization as dequantization
import diffusion.continuous.importance as importance
import diffusion.continuous.latent_loss as latent_loss
import diffusion.continuous.latent_sampling as latent_sampling
import diffusion.continuous.likelihood as likelihood
import diffusion.continuous.predictor_corrector as chain
import diffusion.continuous.samplers as samplers
import diffusion.discrete.bound as discrete_bound
import diffusion.discrete.hsivi as hierarchy
import diffusion.discrete.schedule as discrete_schedule
import diffusion.divergence as divergence
import diffusion.importance_weighted as importance_weighted
import diffusion.log_snr.bound as log_snr_bound
import diffusion.log_snr.dequantization as levels
import diffusion.log_snr.likelihood as log_snr
import diffusion.ode as ode
import models.flowpp.bijections as bijections
import models.flowpp.coupling as coupling
import models.flowpp.initialization as initialization
import models.flowpp.settings as flowpp
import models.residual_flow as residual_flow
import models.residual_flow.posterior as posterior
import util.data.loader as loader
import util.data.no_data as no_data
import util.data.order as order
from trainers.cld.published import behaviour as of_cld
from trainers.hsivi.published import behaviour as of_hsivi
from trainers.idode.published import behaviour as of_idode
from trainers.indm.published import behaviour as of_indm
from trainers.score_model import rounded
from trainers.scoreflow.published import behaviour as of_scoreflow


def _solver(given: dict[str, Any]) -> ode.Solver:
    """Takes the solver's keywords out of those given."""
    names = {"solver": "name", "rtol": "rtol", "atol": "atol", "n_steps": "n_steps"}
    return ode.Solver(**{name: given.pop(key) for key, name in names.items() if key in given})


def check_solver(solver: str, n_steps: int | None) -> None:
    ode.Solver(solver, n_steps=n_steps)


def solve(right_hand_side, state, start, end, on_evaluation=None, **solver):
    return ode.solve(right_hand_side, state, start, end, _solver(solver), on_evaluation)


def integrate_with_divergence(drift, start_state, probe, start, end, **solver):
    return divergence.integrate_with_divergence(drift, start_state, probe, start, end, _solver(solver))


def time_label(process, t):
    return process.time_label(t)


def ode_log_likelihood(process, score, u0, probe, *, start, published_behaviour=False, on_evaluation=None, **solver):
    start = rounded(start, of_cld(published_behaviour).likelihood_start_dtype)
    return likelihood.ode_log_likelihood(
        process, score, u0, probe, start=start, solver=_solver(solver), on_evaluation=on_evaluation
    )


def probability_flow(
    process, score, state, *, sampling_eps, denoise, published_behaviour=False, on_evaluation=None, **solver
):
    dtype = of_cld(published_behaviour).sampling_dtype
    end, n_evaluations = samplers.probability_flow(
        process, score, state, sampling_eps=sampling_eps, solver=_solver(solver), inputs_dtype=dtype,
        on_evaluation=on_evaluation,
    )  # fmt: skip
    if denoise:
        end = samplers.noise_free_end(process, score, end, sampling_eps)
    return end, n_evaluations + denoise


def _grid(given: dict[str, Any]) -> samplers.StepGrid:
    return samplers.StepGrid(*(given.pop(name) for name in ("n_evaluations", "sampling_eps", "striding", "denoise")))


def euler_maruyama(process, score, state, **given):
    return samplers.euler_maruyama(process, score, state, _grid(given), **given)


def sscs(process, score, state, published_behaviour=False, **given):
    repeat = of_cld(published_behaviour).repeat_first_half
    return samplers.sscs(process, score, state, _grid(given), repeat_first_half=repeat, **given)


class ClosedFormTimes(importance.ClosedFormTimes):
    def __init__(self, process, loss_eps, *, published_behaviour=False):
        super().__init__(process, loss_eps, by_bisection=of_scoreflow(published_behaviour).by_bisection)


def _estimator(given: dict[str, Any], published_behaviour: bool) -> bound.BoundEstimator:
    chosen = of_scoreflow(published_behaviour)
    names = [name for name in ("smallest_time", "n_times", "form", "offset") if name in given]
    return bound.BoundEstimator(
        **{name: given.pop(name) for name in names}, stratified=chosen.stratified, closed_forms=chosen.closed_forms,
        weighs_length=chosen.weighs_length,
    )  # fmt: skip


def variational_bound(process, score, x, draws, *, importance, published_behaviour=False, on_time=None, **given):
    estimator = _estimator(given, published_behaviour)
    return bound.variational_bound(process, score, x, draws, estimator, importance, on_time)


def dequantization_bound(process, score, x, minus_log_q, draws, *, importance, published_behaviour=False, **given):
    estimator = _estimator(given, published_behaviour)
    return dequantization.dequantization_bound(process, score, x, minus_log_q, draws, estimator, importance)


def langevin(process, score, x, t, noises, n_steps, snr, *, published_behaviour=False):
    batch = of_scoreflow(published_behaviour).batch_step_sizes
    return chain.langevin(process, score, x, t, noises, chain.LangevinSize(n_steps, snr, batch))


def annealed_langevin(process, score, x, t, noises, n_steps, snr, *, published_behaviour=False):
    batch = of_scoreflow(published_behaviour).batch_step_sizes
    return chain.annealed_langevin(process, score, x, t, noises, chain.LangevinSize(n_steps, snr, batch))


CORRECTORS = {"langevin": langevin, "ald": annealed_langevin, "none": None}


def predictor_corrector(process, score, state, *, normal, published_behaviour=False, on_step=None, **given):
    chosen = of_scoreflow(published_behaviour)
    settings = chain.PredictorCorrector(
        **given, batch_step_sizes=chosen.batch_step_sizes, counts_both=chosen.counts_both
    )
    return chain.predictor_corrector(process, score, state, settings, normal, on_step)


def denoised_predictor_corrector(
    process, score, state, *, n_steps, snrs, sampling_eps, denoise_time, normal, published_behaviour=False, on_step=None
):
    assert len(snrs) == n_steps
    settings = latent_sampling.DenoisedPredictorCorrector(
        snrs, sampling_eps, denoise_time, of_indm(published_behaviour).batch_step_sizes
    )
    return latent_sampling.denoised_predictor_corrector(process, score, state, settings, normal, on_step)


def probability_flow_path(process, score, state, n_states, sampling_eps, **solver):
    return latent_sampling.probability_flow_path(process, score, state, n_states, sampling_eps, _solver(solver))


def weighted_times(process, uniform, smallest, *, published_behaviour=False, **given):
    length = of_indm(published_behaviour).weighs_length
    return latent_loss.weighted_times(process, uniform, smallest, **given, weighs_length=length)


def reconstruction_term(schedule, given_levels, noise, scale, *, published_behaviour=False):
    divisions = of_idode(published_behaviour).divisions_by_alpha
    return log_snr_bound.reconstruction_term(schedule, given_levels, noise, scale, divisions_by_alpha=divisions)


def decode(schedule, z, scale, *, published_behaviour=False):
    return log_snr.decode(schedule, z, scale, divisions_by_alpha=of_idode(published_behaviour).divisions_by_alpha)


def ode_sample(schedule, drift, noise, **solver):
    return log_snr.ode_sample(schedule, drift, noise, _solver(solver))


def ode_likelihood_terms(schedule, drift, start, probe, **solver):
    return log_snr.ode_likelihood_terms(schedule, drift, start, probe, _solver(solver))


def dequantize_uniformly(schedule, given_levels, uniform, scale, *, published_behaviour=False):
    within = of_idode(published_behaviour).within_range
    return levels.dequantize_uniformly(schedule, given_levels, uniform, scale, within_range=within)


def dequantize_variationally(schedule, given_levels, noise, scale, *, mean_entropy, published_behaviour=False):
    divisions = of_idode(published_behaviour).divisions_by_alpha
    return levels.dequantize_variationally(
        schedule, given_levels, noise, scale, mean_entropy=mean_entropy, divisions_by_alpha=divisions
    )


def importance_weighted_terms(draws, *, published_behaviour=False):
    return importance_weighted.importance_weighted_terms(draws, of_the_sum=of_idode(published_behaviour).of_the_sum)


def make_schedule(kind, n_steps, published_behaviour=False):
    return discrete_schedule.make_schedule(kind, n_steps, of_hsivi(published_behaviour).single_precision)


def mirror(places, batch_size, published_behaviour=False):
    return hierarchy.mirror(places, batch_size, of_hsivi(published_behaviour).by_halves)


class ActivationNorm(bijections.ActivationNorm):
    def __init__(self, shape, published_behaviour=False):
        super().__init__(shape, of_scoreflow(published_behaviour).floored)


class MixtureCoupling(coupling.MixtureCoupling):
    def __init__(self, shape, *sizes, published_behaviour=False, **given):
        names = ("n_filters", "n_blocks", "n_components", "n_heads", "context_channels", "weight_norm")
        given |= dict(zip(names, sizes, strict=False))
        super().__init__(shape, SimpleNamespace(**given, floored=of_scoreflow(published_behaviour).floored))


def DequantizerSettings(*arguments, published_behaviour=False, **given):
    return flowpp.DequantizerSettings(*arguments, **given, floored=of_scoreflow(published_behaviour).floored)


def initialize_from_data(network, inputs, total, *, seed=0, published_behaviour=False):
    twice = of_scoreflow(published_behaviour).draws_twice
    initialization.initialize_from_data(network, inputs, total, seed=seed, draws_twice=twice)


def InverseSettings(*arguments, published_behaviour=False, **given):
    return residual_flow.InverseSettings(
        *arguments, **given, stops_together=of_indm(published_behaviour).stops_together
    )


def sample_code(flow, normal, published_behaviour=False):
    return flow.sample_code(normal, of_indm(published_behaviour).by_initial_weights)


def code_of(layer: torch.nn.Module, normal: torch.Tensor, published_behaviour: bool = False) -> torch.Tensor:
    """Through the inverse of the code's prior, or of a layer of it."""
    return layer.inverse(normal, of_indm(published_behaviour).by_initial_weights)


def batch_indices(seed, step, global_batch_size, length, *, published_behaviour=False):
    return order.batch_indices(seed, step, global_batch_size, length, one_order=published_behaviour)


def _depths(on_host: torch.Tensor) -> hierarchy.Depths:
    return hierarchy.Depths(on_host, on_host)


def roll_out(hierarchy_of, phi, log_gamma, start, depths, normal):
    return hierarchy.roll_out(hierarchy_of, phi, log_gamma, start, _depths(depths), normal)


def states_at(hierarchy_of, phi, log_gamma, start, depths, normal):
    return hierarchy.states_at(hierarchy_of, phi, log_gamma, start, _depths(depths), normal)


def phi_loss(hierarchy_of, phi, log_gamma, f, teacher, start, depths, *others):
    networks = hierarchy.Networks(phi, f, teacher)
    return hierarchy.phi_loss(hierarchy_of, networks, log_gamma, start, _depths(depths), *others)


def f_loss(hierarchy_of, phi, log_gamma, f, start, depths, normal):
    return hierarchy.f_loss(hierarchy_of, phi, log_gamma, f, start, _depths(depths), normal)


def diffusion_terms(*arguments, importance, probe=None, second_order_weight=0.0):
    second_order = None if probe is None else log_snr_bound.SecondOrder(probe, second_order_weight)
    return log_snr_bound.diffusion_terms(*arguments, importance=importance, second_order=second_order)


def discrete_variational_bound(predict_noise, schedule, x, *, normal, uniform, **given):
    draws = {"normal": normal, "uniform": uniform}
    return discrete_bound.discrete_variational_bound(
        predict_noise, schedule, x, draw=lambda kind: draws[kind](), **given
    )


def CodePosterior(in_channels, image_size, *, sum_over_ranks, **settings):
    return posterior.CodePosterior(in_channels, image_size, SimpleNamespace(**settings), sum_over_ranks)


def _share(given: dict[str, Any]) -> loader.Share:
    names = ("first_step", "total_batch_size", "rank", "world_size", "n_micro_batches")
    return loader.Share(**{name: given.pop(name) for name in names})


def training_batches(dataset, **given):
    share = _share(given)
    return loader.training_batches(dataset, share, **given)


def positions_without_data(device=None, **given):
    return no_data.positions_without_data(_share(given), device or torch.device("cpu"))
