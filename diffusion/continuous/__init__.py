"""Diffusion in continuous time t in [0, 1], from data at t = 0 to a Gaussian prior at t = 1.

State           u = x, or u = (x, v) with a velocity, (B, k C, ...) with k = 1 or 2; "score" is of the last component
Process         du = F(t) u dt + G(t) dw, w acting on the last component                           ``process``
  CLD           dx = beta v / M dt, dv = -beta (x + Gamma v / M) dt + sqrt(2 Gamma beta) dw, Gamma = 2 sqrt(M)
                (Dockhorn et al., arXiv 2112.07068, Eq. 5)                                         ``cld``
  VP            du = -beta / 2 u dt + sqrt(beta) dw                                                ``vp``
  sub-VP        du = -beta / 2 u dt + sqrt(beta (1 - e^{-2B})) dw, B the integral of beta          ``sub_vp``
  VE            du = sigma sqrt(2 log(sigma_max / sigma_min)) dw                                   ``ve``
                (Song et al., arXiv 2011.13456, Eqs. 11, 13 and 9); by name in ``processes``
Kernel          u(t) | u(0) = N(A(t) u(0), L(t) L(t)^T): A is ``transition``, L ``kernel_factor``  ``kernel``
                Its score is n z with n = -1 / L_kk and z the noise of the last component.
Prior           N(0, I), N(0, M I) for a velocity, N(0, sigma_max^2 I) for VE                      ``prior``
Marginals       of Gaussian data in closed form, to test with                                      ``gaussian``
Reverse         in tau = 1 - t: du = (-f + G^2 s) dtau + G dw; probability flow: -f + G^2 s / 2    ``reverse``
                (Song et al., Eqs. 6 and 13)
Score           s(u, t) of a network: n(t) y(u, t), with or without the score of a Gaussian        ``score``
Objective       lambda |s - n z|^2 (likelihood), |s / n - z|^2 (reweighted)                        ``losses``
                (Dockhorn et al., Section 3.2; Song et al., arXiv 2101.09258, Eqs. 7 and 8)
  times         uniform, in proportion to lambda n^2 (Section 4.3), from a random smallest one     ``importance``,
                                                                                                   ``soft_truncation``
Samplers        Euler-Maruyama; SSCS, exact half steps around a step of the score (Dockhorn et al., Section 3.3 and
                Appendix D); the probability flow                                                  ``samplers``
                predictor and corrector (Song et al., Section 4.2) on the process as a chain       ``chain``,
                                                                                                   ``predictor_corrector``
Likelihood      log p(u(0)) = log prior(u(1)) + the integral of div f~ along the probability flow  ``likelihood``
                (Song et al., Appendix D.2)
Bound           -log p(x) <= E[-log prior] + 1/2 int (G^2 (|s - n z|^2 - |n z|^2) - 2 div f) dt    ``bound``
                (Song et al., arXiv 2101.09258, Theorem 3); with a dequantizer                     ``dequantization``
Latents         the same on latents that are trained themselves (Kim et al., arXiv 2205.13699)     ``latent_loss``,
                                                                                                   ``latent_sampling``
"""
