"""Diffusion in the time gamma = -log SNR, from gamma_min (data) to gamma_max (noise).

State           z_gamma = alpha(gamma) x + sigma(gamma) eps, alpha^2 / sigma^2 = exp(-gamma)        ``schedule``
  VP            alpha^2 + sigma^2 = 1
  straight path alpha + sigma = 1 (Zheng et al., arXiv 2305.03935, Section 3)
Prior           N(0, sigma(gamma_max)^2 I)
Flow            dz / dgamma = (d log alpha / d gamma) z + sigma / 2 eps = s alpha sigma / 2 v with the velocity
                v = (eps - k z) / (s alpha); a network predicts v or eps                           ``velocity``
Objective       the bound of VDM (Kingma et al., arXiv 2107.00630, Section 4):                      ``bound``
                  reconstruction -log p(k | z_0), prior KL(q(z_1 | x) | N(0, I)),
                  diffusion 1/2 int |eps - eps(z, gamma)|^2 dgamma, at one gamma for each sample, uniform or of
                  density alpha^2 / Z (Zheng et al., Section 4.2); a second-order objective bounds the error of the
                  divergence (4.3)
Levels          p(k | z_0) of the 256 grey levels                                                   ``levels``
Dequantization  uniform; the diffusion's own z_0; normals truncated to each level (Section 5.1)      ``dequantization``
Likelihood      -log P(k) <= -log p(z_1) - int div + log q(z_0 | k), by the ODE                     ``likelihood``
                and from several draws of z_0 (Burda et al., arXiv 1509.00519)
                                                                                          ``diffusion.importance_weighted``
"""
