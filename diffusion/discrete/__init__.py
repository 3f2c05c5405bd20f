"""Diffusion in T discrete steps with labels k = 0 ... T - 1.

State           x_k, (B, C, H, W); x_k = sqrt(alphas_bar_k) x + sqrt(1 - alphas_bar_k) eps          ``ddpm.noised``
                (Ho et al., arXiv 2006.11239, Eq. 4)
Kernel          x_k | x_{k-1} = N(sqrt(1 - beta_k) x_{k-1}, beta_k I), alphas_bar_k = prod (1 - beta_j)  ``schedule``
                linear (Ho et al.) and cosine (Nichol and Dhariwal, arXiv 2102.09672, Section 3.2)
Posterior       x_{k-1} | x_k, x: mean in Eq. 7, variance beta_k (1 - alphas_bar_{k-1}) / (1 - alphas_bar_k)
                                                                                                   ``ddpm.posterior_mean``
Network         eps(x_k, k); the data it stands for: (x_k - sqrt(1 - alphas_bar_k) eps) / sqrt(alphas_bar_k)
                                                                                                   ``ddpm.predicted_data``
Objective       |eps - eps(x_k, k)|^2 (Eq. 14)                                                     ``ddpm``
Reverse         ancestral sampling (Algorithm 2); DDIM on some of the labels (Song et al., arXiv 2010.02502, Eq. 12)
                                                                                                   ``ddim``
Likelihood      the variational bound on grey levels, label by label (Ho et al., Eq. 5)             ``bound``

HSIVI           N time points joined by N - 1 layers x_{i-1} | x_i = N(mu_phi(x_i), Gamma_phi), a semi-implicit
(arXiv          hierarchy; phi is trained to have the scores of the teacher at a random depth, with f, which learns the
2310.17153)     score of phi's own marginals                                                       ``hsivi``
"""
