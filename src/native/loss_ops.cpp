// The loss of a variational autoencoder from libtorch's operations, with gradients in closed form: on a GPU each operation is a
// launch, of which the captured step of a small network is made, and autograd's own formulas take twice as many. Nothing is read
// back. What the functions compute stands in loss.cpp, whose loops are faster on a CPU.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "guard.h"
#include "loss.h"

using namespace ganvae;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

struct Draw : Function<Draw> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& mu, const at::Tensor& logvar, const at::Tensor& eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    for (const auto* t : {&mu, &logvar, &eps}) check_like(*t, mu);
    const at::Tensor deviation = at::mul(logvar, 0.5).exp_();
    // logvar - mu^2 - exp(logvar)
    const at::Tensor terms = at::addcmul(logvar, mu, mu, -1).addcmul_(deviation, deviation, -1);
    const double half = 0.5 / mu.size(0);
    ctx->save_for_backward({mu, deviation, eps});
    ctx->set_materialize_grads(false);
    // rsub(a, b, c) is b - c a.
    return {at::addcmul(mu, deviation, eps), at::rsub(terms.sum(), -half * mu.numel(), half)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_second_derivative();
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &mu = saved[0], &deviation = saved[1], &eps = saved[2];
    const at::Tensor g = grads[0].defined() ? grads[0] : at::zeros_like(mu);
    const at::Tensor kl = grads[1].defined() ? grads[1] : at::zeros({}, mu.options());
    const double share = 1.0 / mu.size(0);
    // g eps + kl exp(logvar / 2) / B, of which half times exp(logvar / 2) is the gradient of logvar, but for the constant.
    const at::Tensor along = at::mul(g, eps).addcmul_(deviation, kl, share);
    return {at::addcmul(g, mu, kl, share), at::addcmul(kl.mul(-0.5 * share), along, deviation, 0.5), {}};
  }
};

// The weight of kl is `beta`, times the scalar `ramp` on the device if there is one.
struct Bernoulli : Function<Bernoulli> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& logits, const at::Tensor& x, const at::Tensor& kl,
                               double beta, const std::optional<at::Tensor>& ramp) {
    at::AutoDispatchBelowADInplaceOrView below;
    for (const auto* t : {&logits, &x}) check_like(*t, logits);
    check_scalar(kl, logits);
    if (ramp) check_scalar(*ramp, logits);
    // log(1 + e^l) - l x
    const at::Tensor terms = at::softplus(logits).addcmul_(logits, x, -1);
    const at::Tensor recon = terms.sum().mul_(1.0 / logits.size(0));
    ctx->save_for_backward({logits, x, ramp.value_or(at::Tensor())});
    ctx->saved_data["beta"] = beta;
    ctx->set_materialize_grads(false);
    return {ramp ? at::addcmul(recon, kl, *ramp, beta) : at::add(recon, kl, beta), recon};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_second_derivative();
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &logits = saved[0], &x = saved[1], &ramp = saved[2], &loss = grads[0], &recon = grads[1];
    const at::Tensor both = !recon.defined() ? loss : !loss.defined() ? recon : at::add(loss, recon);
    if (!both.defined()) return {{}, {}, {}, {}, {}};
    at::Tensor kl;
    if (loss.defined()) {
      const double beta = ctx->saved_data["beta"].toDouble();
      kl = ramp.defined() ? ramp.mul(loss) : loss;
      if (beta != 1) kl = kl.mul(beta);
    }
    return {at::sigmoid(logits).sub_(x).mul_(both.mul(1.0 / logits.size(0))), {}, kl, {}, {}};
  }
};

}  // namespace

extern "C" {

// As gv_gaussian_draw, on any device.
char* gv_gaussian_draw_ops(at::Tensor** z, at::Tensor** kl, at::Tensor* mu, at::Tensor* logvar, at::Tensor* eps) {
  return guarded([&] {
    const variable_list out = Draw::apply(*mu, *logvar, *eps);
    *z = new at::Tensor(out[0]);
    *kl = new at::Tensor(out[1]);
  });
}

// As gv_bernoulli_bound, on any device; `ramp`, a float32 scalar there by which beta is multiplied, may be null.
char* gv_bernoulli_bound_ops(at::Tensor** loss, at::Tensor** recon, at::Tensor* logits, at::Tensor* x, at::Tensor* kl,
                             double beta, at::Tensor* ramp) {
  return guarded([&] {
    const variable_list out = Bernoulli::apply(*logits, *x, *kl, beta, ramp ? std::optional(*ramp) : std::nullopt);
    *loss = new at::Tensor(out[0]);
    *recon = new at::Tensor(out[1]);
  });
}

}  // extern "C"
