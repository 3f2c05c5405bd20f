"""The invertible residual flow of INDM (Kim et al., arXiv 2205.13699), conditioned on a code h of each image.

Blocks y = x + g_h(x) with a contracting g (Residual Flows, Chen et al., arXiv 1906.02735) at several resolutions, an
encoder that gives a Gaussian posterior q(h | x), and a coupling flow as the prior p(h). The state_dict has the names,
order and shapes of the published checkpoints.

    flow = InvertibleFlow(FlowSettings(image_channels=3, image_size=32), sum_over_ranks=distributed.sum)
    noise = draw_flow_noise(flow, noise, shared)          # every random number of one pass; or a FlowNoise by hand
    output = flow(x, noise, log_determinant="surrogate")  # training: its gradient is unbiased, its value is not one
    output = flow(x, noise, log_determinant="series")     # evaluation: unbiased value, no gradient
    output = flow(x, noise, log_determinant="exact")      # no estimate; memory (C H W)^2 for each image
    output = flow(x, noise, log_determinant="none")       # the latent alone
    output.z, output.code                                 # (B, C, H, W), (B, code_size)
    output.kl, output.log_determinants                    # float64 (B,), (B, n_blocks)
    output.log_jacobian                                   # float64 (B,): sum of log_determinants - kl
    x = flow.inverse(z, flow.sample_code(normal), InverseSettings(tolerance=1e-6))  # RunFailed if not reached

``flow.train()`` makes the encoder normalise by the batch's statistics, summed over ranks, and move its running ones.
Everything is computed in the parameters' dtype, under autocast too.
"""

from models.residual_flow.flow import FlowOutput, FlowSettings, InvertibleFlow
from models.residual_flow.noise import FlowNoise, draw_flow_noise
from models.residual_flow.residual_block import InverseSettings

__all__ = ["FlowNoise", "FlowOutput", "FlowSettings", "InverseSettings", "InvertibleFlow", "draw_flow_noise"]
