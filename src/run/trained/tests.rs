//! Exported modules, batches, latents of the prior.

use super::*;
use crate::native::{self, Submodule, save_script};
use std::path::Path;

const SHAPE: Shape = Shape { channels: 1, height: 2, width: 3 };

/// A network of one linear layer with the weights of `seed`, as an export has it.
fn save(path: &Path, network: &str, latent: i64, seed: i64) -> Result<Tensor> {
    let (from, to) = if network == "encoder" { (6, latent) } else { (latent, 6) };
    let w = native::randn(seed, &[to, from])?;
    let linear = "def forward(self, x):\n  return torch.linear(x, self.weight)\n";
    let parts = [Submodule { name: "fc".into(), kind: "Linear", methods: linear.into() }];
    let (z, x) = (format!("{{\"name\":\"z\",\"shape\":[\"B\",{latent}]}}"), "{\"name\":\"x\",\"shape\":[\"B\",1,2,3]}");
    let (forward, input, outputs) = match network {
        "encoder" => ("mu = self.fc.forward(torch.flatten(x, 1))\n  return (mu, mu - 1.0)", x, format!("[{z},{z}]")),
        _ => ("return torch.reshape(torch.sigmoid(self.fc.forward(x)), [-1, 1, 2, 3])", &*z, format!("[{x}]")),
    };
    let about = format!("{{\"network\":\"{network}\",\"input\":{input},\"outputs\":{outputs}}}");
    let methods = format!("def forward(self, x):\n  {forward}\n");
    save_script(path, "Net", &about, &methods, &parts, &[("fc.weight".into(), w.shallow_clone(), true)])?;
    Ok(w)
}

fn open(path: &Path) -> Result<Trained> {
    Trained::open(path, "cpu")
}

fn said(result: Result<impl Sized>) -> String {
    result.err().map_or_else(String::new, |e| format!("{e:#}"))
}

#[test]
fn exported_modules_work_by_folder_and_by_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (decoder, encoder) = (dir.path().join("decoder.pt"), dir.path().join("encoder.pt"));
    let (w, v) = (save(&decoder, "decoder", 4, 1)?, save(&encoder, "encoder", 4, 2)?);
    for path in [dir.path(), &decoder, &encoder] {
        let trained = open(path)?;
        assert_eq!((trained.latent(), trained.shape(), trained.device()), (4, SHAPE, Device::Cpu));
        assert!(trained.origin().is_none() && trained.networks().is_none());
        let z = trained.prior(3, 0, 70)?;
        let x = trained.decode(&z, None)?;
        assert!((&x - z.linear(&w, None::<Tensor>).sigmoid().view([70, 1, 2, 3])).abs().max().double_value(&[]) < 1e-6);
        let (mu, logvar) = trained.encode(&x)?;
        assert!((&mu - x.flatten(1, -1).linear(&v, None::<Tensor>)).abs().max().double_value(&[]) < 1e-6);
        assert_eq!(logvar, mu - 1.0);
        assert_eq!(trained.sample(70, 3)?, x, "samples are the decoded prior");
        assert_eq!(trained.sample(5, 3)?, x.narrow(0, 0, 5), "the first of more, bit for bit");
        assert_ne!(trained.sample(5, 4)?, x.narrow(0, 0, 5));
    }
    std::fs::rename(&decoder, dir.path().join("my-decoder.pt"))?;
    assert!(said(open(&dir.path().join("my-decoder.pt"))?.check_encoder()).contains("no encoder.pt"));
    std::fs::rename(&encoder, dir.path().join("my-encoder.pt"))?;
    open(&dir.path().join("my-decoder.pt"))?.check_encoder()?;
    Ok(())
}

#[test]
fn every_batch_is_of_one_size_and_keeps_its_rows() -> Result<()> {
    let dir = tempfile::tempdir()?;
    drop(save(&dir.path().join("decoder.pt"), "decoder", 4, 1)?);
    let trained = open(dir.path())?;
    for count in [1, 63, 64, 65, 200] {
        let rows = native::randn(1, &[count, 4])?;
        let twice = trained.in_batches(&rows, None, |batch, _| {
            assert_eq!(batch.size(), [BATCH, 4], "{count} rows");
            Ok(vec![batch * 2.0])
        })?;
        assert_eq!(twice, [&rows * 2.0]);
    }
    Ok(())
}

/// By pixels alone; each image alone, so that the others do not matter.
#[test]
fn an_exported_generator_is_inverted() -> Result<()> {
    let dir = tempfile::tempdir()?;
    drop(save(&dir.path().join("generator.pt"), "generator", 4, 1)?);
    let trained = open(dir.path())?;
    let (x, search) = (trained.sample(3, 7)?, Search::default());
    let mut updates = 0;
    let (z, _) = trained.latents(&x, &search, &mut || updates += 1)?;
    assert_eq!((z.size(), updates), (vec![3, 4], 3 * search.steps));
    let off = (trained.decode(&z, None)? - &x).square().mean(Kind::Double).sqrt().double_value(&[]);
    assert!(off < 0.03, "30 dB are 0.032, found {off}");
    let (alone, _) = trained.latents(&x.narrow(0, 1, 1), &search, &mut || ())?;
    assert_eq!(alone, z.narrow(0, 1, 1), "bit for bit");
    let nan = x.narrow(0, 0, 1) * f64::NAN;
    assert!(said(trained.latents(&nan, &search, &mut || ())).contains("not finite"));
    Ok(())
}

#[test]
fn what_cannot_be_used_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = |name: &str| dir.path().join(name);
    drop(save(&file("encoder.pt"), "encoder", 4, 1)?);
    let alone = open(&file("encoder.pt"))?;
    assert!(said(alone.sample(1, 0)).contains("an encoder alone"));
    assert!(said(alone.source(None, None, false)).contains("--data is missing"));
    drop(save(&file("decoder.pt"), "decoder", 5, 1)?);
    let e = said(open(dir.path()));
    assert!(e.contains("does not fit") && e.contains("latents of 4 and") && e.contains("the other 5 and"), "{e}");
    drop(save(&file("generator.pt"), "generator", 4, 1)?);
    let gan = open(&file("generator.pt"))?;
    assert!(said(gan.encode(&Tensor::zeros([1, 1, 2, 3], (Kind::Float, Device::Cpu)))).contains("searched for"));
    assert!(said(gan.decode(&Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)), None)).contains("[N,4]"));
    drop(save(&file("discriminator.pt"), "discriminator", 4, 1)?);
    assert!(said(open(&file("discriminator.pt"))).contains("generates no images"));
    let both = tempfile::tempdir()?;
    for name in ["decoder", "generator"] {
        drop(save(&both.path().join(format!("{name}.pt")), name, 4, 1)?);
    }
    let e = said(open(both.path()));
    assert!(e.contains("decoder.pt") && e.contains("generator.pt both generate images"), "{e}");
    std::fs::write(file("bad.pt"), "no module")?;
    assert!(said(open(&file("bad.pt"))).contains("bad.pt is no TorchScript module"));
    let foreign = file("foreign.pt");
    tch::CModule::create_by_tracing("M", "forward", &[Tensor::from(1f32)], &mut |x| vec![&x[0] * 2])?.save(&foreign)?;
    assert!(said(open(&foreign)).contains("has no description"));
    for nothing in [file("nowhere"), file("bad"), tempfile::tempdir()?.keep()] {
        let e = open(&nothing).err().unwrap();
        assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains("wanted a run's folder"), "{e}");
    }
    Ok(())
}

#[test]
fn latents_of_the_prior_are_a_function_of_seed_and_number() -> Result<()> {
    let dir = tempfile::tempdir()?;
    drop(save(&dir.path().join("decoder.pt"), "decoder", 4, 1)?);
    let trained = open(dir.path())?;
    let all = trained.prior(9, 0, 300)?;
    for (from, count) in [(0, 1), (0, 64), (63, 2), (64, 64), (100, 150), (299, 1)] {
        assert_eq!(trained.prior(9, from, count)?, all.narrow(0, from, count), "{count} from {from}");
    }
    assert_ne!(trained.prior(8, 0, 1)?, all.narrow(0, 0, 1));
    Ok(())
}
