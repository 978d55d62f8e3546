//! The variational autoencoder: one update, scores, pictures.
//!
//! Kingma and Welling 2014 (arXiv 1312.6114); β after Higgins et al. 2017. Never sees files, paths or ranks.

use anyhow::Result;
use tch::nn::{self, VarStore};
use tch::{Device, Kind, Tensor};

use crate::base::timer::Phase;
use crate::models::optimizer::{Adam, Hyper};
use crate::models::{Model, Moment, Number, StepCx, Visit, visit_vars};
use crate::native;
use crate::nets::{
    self, Forms, Init, Mode, Net, NetSpec, Network, Op, Operation, Port, Shape, features, linear, synthesis,
};

/// Everything that decides a VAE's mathematics.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeSpec {
    /// Shape of the images.
    pub shape: Shape,
    /// Z.
    pub latent: i64,
    /// The encoder's layers.
    pub encoder: NetSpec,
    /// The decoder's layers.
    pub decoder: NetSpec,
    /// Weight of the KL term; 1 is the evidence bound.
    pub beta: f64,
    /// Updates over which β rises from 0 in equal parts; 0 for none.
    pub kl_warmup_steps: u64,
}

/// q(z|x) = N(mu, exp(logvar)) and p(x|z) of Bernoulli pixels, with one Adam over both networks.
#[derive(Debug)]
pub struct Vae {
    spec: VaeSpec,
    vars: VarStore,
    trunk: Net,
    mu: nn::Linear,
    logvar: nn::Linear,
    decoder: Net,
    adam: Adam,
}

/// The terms of the loss, scalars in nats per image.
#[derive(Debug)]
pub struct VaeLoss {
    /// recon + β·kl, what is minimised.
    pub loss: Tensor,
    /// −E_q[log p(x|z)] with one z for each image.
    pub recon: Tensor,
    /// KL(q(z|x) ‖ p(z)).
    pub kl: Tensor,
}

impl Vae {
    /// Fresh weights from libtorch's current random state.
    ///
    /// # Errors
    /// When the architecture cannot take images of this shape.
    pub fn new(spec: VaeSpec, hyper: Hyper, device: Device) -> Result<Self> {
        let vars = VarStore::new(device);
        let path = &vars.root() / "encoder";
        let (trunk, width) = features(&path, spec.shape, &spec.encoder)?;
        let mu = linear(&path, "mu", width, spec.latent, true, Init::PyTorch)?;
        let logvar = linear(&path, "logvar", width, spec.latent, true, Init::PyTorch)?;
        let path = &vars.root() / "decoder";
        let decoder = synthesis(&path, spec.latent, spec.shape, &spec.decoder)?;
        let adam = Adam::new(&vars, hyper);
        Ok(Vae { spec, vars, trunk, mu, logvar, decoder, adam })
    }

    /// x [B,C,H,W] -> (mu [B,Z], logvar [B,Z]).
    ///
    /// # Errors
    /// libtorch's.
    pub fn posterior(&self, x: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
        let h = self.trunk.forward(x, mode)?; // [B,F]
        let mu = self.trunk.forms.linear(&h, &self.mu.ws, self.mu.bs.as_ref(), 1.0)?;
        let logvar = self.trunk.forms.linear(&h, &self.logvar.ws, self.logvar.bs.as_ref(), 1.0)?;
        Ok((mu, logvar))
    }

    /// The loss on x [B,C,H,W] in [0,1] with noise eps [B,Z] ∼ N(0, I): z = mu + exp(logvar/2)·eps.
    ///
    /// # Errors
    /// libtorch's.
    pub fn loss(&self, x: &Tensor, eps: &Tensor, beta: &Number, mode: Mode) -> Result<VaeLoss> {
        let (mu, logvar) = self.posterior(x, mode)?;
        let (z, kl) = native::gaussian_draw(&mu, &logvar, eps)?; // [B,Z]
        let logits = self.decoder.forward(&z, mode)?; // [B,C,H,W]
        let (loss, recon) = match beta {
            Number::Host(beta) => native::bernoulli_bound(&logits, x, &kl, *beta)?,
            Number::Device(beta) => native::bernoulli_bound(&logits, x, &kl, &beta.f_to_kind(Kind::Float)?)?,
        };
        Ok(VaeLoss { loss, recon, kl })
    }

    /// One update with the noise given; returns the terms before it.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(&mut self, x: &Tensor, eps: &Tensor, beta: &Number, cx: StepCx) -> Result<VaeLoss> {
        let terms = self.loss(x, eps, beta, Mode::Train)?;
        cx.clock.lap(Phase::Forward);
        self.adam.minimise(&terms.loss, cx)?;
        Ok(terms)
    }

    /// The optimizer.
    pub fn adam(&self) -> &Adam {
        &self.adam
    }

    /// β at an update: rises linearly over the warm-up (Bowman et al. 2016, arXiv 1511.06349, section 3.1).
    fn beta_at(&self, now: Moment) -> Result<Number> {
        match self.spec.kl_warmup_steps {
            0 => Ok(Number::Host(self.spec.beta)),
            n => now.step().plus(1.0)?.over(&Number::Host(n as f64))?.at_most(1.0)?.scaled(self.spec.beta),
        }
    }

    fn eps(&self, x: &Tensor, now: Moment) -> Result<Tensor> {
        now.noise(&[x.size()[0], self.spec.latent], self.vars.device())
    }
}

impl VaeLoss {
    fn stacked(&self) -> Result<Tensor> {
        Ok(Tensor::f_stack(&[&self.loss, &self.recon, &self.kl], 0)?.f_detach()?) // [3]
    }
}

impl Model for Vae {
    fn step(&mut self, x: &Tensor, cx: StepCx) -> Result<Tensor> {
        let eps = self.eps(x, cx.now)?;
        let beta = self.beta_at(cx.now)?;
        self.update(x, &eps, &beta, cx)?.stacked()
    }

    fn score(&self, x: &Tensor, cx: StepCx) -> Result<Tensor> {
        let eps = self.eps(x, cx.now)?;
        tch::no_grad(|| self.loss(x, &eps, &Number::Host(self.spec.beta), Mode::Eval)?.stacked())
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["loss", "recon", "kl"]
    }

    fn report(&self, values: &[f64]) -> Vec<(&'static str, f64)> {
        let mut named: Vec<_> = self.scalars().iter().copied().zip(values.iter().copied()).collect();
        if let [_, recon, kl] = values {
            named.push(("elbo", -(recon + kl)));
        }
        named
    }

    fn limits(&self) -> Vec<f64> {
        // A decoder that knows nothing gives every pixel one bit; the weight of the KL term may be large.
        let limit = 100.0 * (self.spec.shape.numel() as f64 * std::f64::consts::LN_2 + self.spec.latent as f64);
        vec![f64::INFINITY, limit, limit]
    }

    fn worries(&self, means: &[f64]) -> Vec<&'static str> {
        match means {
            [_, _, kl] if *kl < 0.05 => vec![
                "the latents carry nothing (KL below 0.05 nats): the decoder ignores them; try --kl-warmup, a lower --beta or a \
                 higher --lr",
            ],
            _ => Vec::new(),
        }
    }

    fn criterion(&self) -> Option<usize> {
        Some(0)
    }

    fn end_training(&mut self) {
        self.adam.forget();
    }

    fn set_lr(&mut self, lr: f64) {
        self.adam.set_lr(lr);
    }

    fn decode(&self, z: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| Ok(self.decoder.forward(z, Mode::Eval)?.f_sigmoid_()?))
    }

    fn reconstruct(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let (mu, _) = tch::no_grad(|| self.posterior(x, Mode::Eval))?;
        self.decode(&mu).map(Some)
    }

    fn encode(&self, x: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        tch::no_grad(|| self.posterior(x, Mode::Eval)).map(Some)
    }

    fn networks(&self) -> Vec<Network<'_>> {
        let (shape, latent) = (self.spec.shape.dims().to_vec(), vec![self.spec.latent]);
        let head = |name: &'static str, about, layer| {
            let port = Port { name, dims: latent.clone(), range: None, about };
            (port, vec![(name.to_owned(), Operation::Linear(layer))])
        };
        let x = Port { name: "x", dims: shape, range: Some((0.0, 1.0)), about: "images" };
        let z = Port { name: "z", dims: latent.clone(), range: None, about: "latents, of the prior N(0, I)" };
        vec![
            Network {
                name: "encoder",
                input: x.clone(),
                trunk: self.trunk.operations(),
                outputs: vec![
                    head("mu", "mean of q(z|x)", &self.mu),
                    head("logvar", "logarithm of the variance of q(z|x)", &self.logvar),
                ],
                live: Box::new(|x| {
                    let (mu, logvar) = tch::no_grad(|| self.posterior(x, Mode::Eval))?;
                    Ok(vec![mu, logvar])
                }),
            },
            Network {
                name: "decoder",
                input: z,
                trunk: self.decoder.operations(),
                outputs: vec![(
                    Port { about: "means of the pixels", ..x },
                    vec![("sigmoid".to_owned(), Operation::Sigmoid)],
                )],
                live: Box::new(|z| Ok(vec![self.decode(z)?])),
            },
        ]
    }

    fn set_forms(&mut self, forms: Forms) -> Result<()> {
        self.trunk.forms = forms;
        self.decoder.forms = forms;
        forms.arrange_weights(&self.vars)?;
        self.adam.arrange()
    }

    fn work(&self, batch: i64) -> Vec<nets::Work> {
        let mut ops = self.trunk.ops(Some((self.spec.shape.height, self.spec.shape.width)));
        for head in [&self.mu, &self.logvar] {
            ops.push(Op::Linear { from: head.ws.size()[1], to: head.ws.size()[0] });
        }
        ops.extend(self.decoder.ops(None));
        nets::training(&ops, batch, true, false)
    }

    fn latent(&self) -> i64 {
        self.spec.latent
    }

    fn visit(&mut self, v: &mut dyn Visit) -> Result<()> {
        visit_vars(v, "", &self.vars)?;
        self.adam.visit(v, "step")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::timer::Clock;
    use crate::nets::{Activation, Arch};

    fn vae(beta: f64, kl_warmup_steps: u64) -> Vae {
        let net = NetSpec {
            arch: Arch::Mlp,
            hidden: vec![4],
            base_width: 1,
            activation: Activation::Relu,
            batch_norm: false,
            init: Init::PyTorch,
        };
        let shape = Shape { channels: 1, height: 2, width: 3 };
        let spec = VaeSpec { shape, latent: 2, encoder: net.clone(), decoder: net, beta, kl_warmup_steps };
        Vae::new(spec, Hyper::default(), Device::Cpu).unwrap()
    }

    #[test]
    fn the_weight_of_the_kl_term_rises_in_equal_parts() {
        let warm = vae(2.0, 4);
        let beta = |vae: &Vae, step| match vae.beta_at(Moment::Host { noise: 0, step }).unwrap() {
            Number::Host(beta) => beta,
            Number::Device(_) => panic!("a number of the host's has left it"),
        };
        let betas: Vec<f64> = (0..6).map(|step| beta(&warm, step)).collect();
        assert_eq!(betas, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(beta(&vae(2.0, 0), 0), 2.0);
    }

    #[test]
    fn latents_that_carry_nothing_are_worrying_and_an_explosion_has_a_limit() {
        let vae = vae(1.0, 0);
        assert!(vae.worries(&[100.0, 99.0, 1.0]).is_empty());
        assert!(vae.worries(&[100.0, 100.0, 0.01])[0].contains("carry nothing"));
        let limits = vae.limits();
        assert_eq!(limits.len(), vae.scalars().len());
        let chance = 6.0 * std::f64::consts::LN_2;
        assert!(limits[1] > 50.0 * chance && limits[1] < 1000.0 * chance);
        assert_eq!(vae.scalars()[vae.criterion().unwrap()], "loss");
    }

    #[test]
    fn a_step_trains_with_the_warmed_weight_and_a_score_with_the_whole_one() {
        let mut warm = vae(2.0, 4);
        let x = Tensor::rand([3, 1, 2, 3], (tch::Kind::Float, Device::Cpu));
        let clock = Clock::off();
        let cx = StepCx::host(1, 0, &clock);
        for (values, beta) in [(warm.score(&x, cx).unwrap(), 2.0), (warm.step(&x, cx).unwrap(), 0.5)] {
            let v = Vec::<f32>::try_from(&values).unwrap();
            assert!((v[0] - v[1] - beta * v[2]).abs() < 1e-5, "{v:?} with {beta}");
            let report = warm.report(&[f64::from(v[0]), f64::from(v[1]), f64::from(v[2])]);
            assert_eq!(report[3], ("elbo", -f64::from(v[1]) - f64::from(v[2])), "the bound has no beta");
        }
    }
}
