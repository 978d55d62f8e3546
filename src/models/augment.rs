//! Augmentation of the images that a discriminator sees, real and generated alike.
//!
//! Augmenting both, and passing the generator's gradient through it, keeps a discriminator from memorizing few images without teaching
//! the generator to augment: Zhao et al. 2020 (DiffAugment, arXiv 2006.10738), Karras et al. 2020 (adaptive probability, 2006.06676).

use anyhow::Result;
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};
use toml::Value as Toml;

use super::noise::Noise;
use crate::base::setting::{Setting, Settings, choice_name};
use crate::base::shape::Shape;
use crate::base::usage::usage;

/// The augmentations, in the order in which they are applied: colours first, so that shift and cutout leave plain grey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Augmentation {
    /// Brightness, saturation (of colour images) and contrast, each with its own probability.
    Colour,
    /// Adds up to ±0.25.
    Brightness,
    /// Scales the distance from a pixel's mean over the colours by 0 to 2.
    Saturation,
    /// Scales the distance from an image's mean by 0.5 to 1.5.
    Contrast,
    /// Mirrors left to right, half of the images chosen.
    Mirror,
    /// Turns by 0 to 3 quarters, counter-clockwise.
    Turn,
    /// Shifts by up to an eighth of each side; what moves in is grey.
    Shift,
    /// A grey rectangle of half the sides, its centre anywhere in the image.
    Cutout,
}

/// With which probability an augmentation is applied to an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ApplyProbability {
    /// Always this one; 1 is DiffAugment.
    Fixed(f64),
    /// Adapted to how sure the discriminator is of real images.
    Adaptive,
}

/// See [`Augmentation`].
pub static AUGMENT: Setting<Vec<Augmentation>> = Setting::new(
    "augment",
    "Augment what the discriminator sees, real and generated images alike, for sets of few images: none, or a list such as \
     shift,colour,cutout (DiffAugment) of mirror, turn, shift, colour (brightness, saturation and contrast, also singly) and cutout",
    "none, or a list such as shift,colour,cutout of colour, brightness, saturation, contrast, mirror, turn, shift and cutout",
    read_list,
    |list| Toml::String(if list.is_empty() { "none".into() } else { list.iter().map(choice_name).collect::<Vec<_>>().join(",") }),
)
.default("none", "sets of many images need none")
.value_name("LIST");

/// See [`ApplyProbability`].
pub static AUGMENT_P: Setting<ApplyProbability> = Setting::new(
    "augment-p",
    "Probability of each --augment for each of the images: 1 as in DiffAugment (with turn, the generator then turns its images too), or \
     adaptive: it rises from 0 up to 0.8 while the discriminator is too sure of real images, and falls otherwise [default: 1]",
    "adaptive, or a number",
    |text| match text {
        "adaptive" => Some(ApplyProbability::Adaptive),
        _ => text.parse().ok().map(ApplyProbability::Fixed),
    },
    |p| match p {
        ApplyProbability::Fixed(p) => Toml::Float(*p),
        ApplyProbability::Adaptive => Toml::String("adaptive".into()),
    },
)
.range("from 0 to 1", |p| match p {
    ApplyProbability::Fixed(p) => (0.0..=1.0).contains(p),
    ApplyProbability::Adaptive => true,
})
.value_name("P|adaptive");

/// The list in the order of application; none if it names one twice, or another thing.
fn read_list(text: &str) -> Option<Vec<Augmentation>> {
    if text == "none" {
        return Some(Vec::new());
    }
    let list: Option<Vec<_>> = text.split(',').map(|name| Augmentation::from_str(name.trim(), false).ok()).collect();
    let mut list = list?;
    list.sort_unstable();
    list.windows(2).all(|pair| pair[0] != pair[1]).then_some(list)
}

/// What is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct AugmentSpec {
    /// At least one, in the order of application.
    pub list: Vec<Augmentation>,
    /// The probability of each, for each image.
    pub p: ApplyProbability,
}

impl AugmentSpec {
    /// From `--augment` and `--augment-p`; none without augmentation.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for a probability of nothing.
    pub fn from_settings(s: &Settings) -> Result<Option<Self>> {
        let (list, p) = (s.get(&AUGMENT)?, s.given(&AUGMENT_P));
        if list.is_empty() {
            if p.is_some() {
                usage!("--augment-p has no effect without --augment: add a list such as --augment shift,colour,cutout");
            }
            return Ok(None);
        }
        Ok(Some(AugmentSpec { list, p: p.unwrap_or(ApplyProbability::Fixed(1.0)) }))
    }
}

/// Uniform numbers that decide about one image.
pub const DRAWS: i64 = 16;

/// Places of an augmentation's numbers among the [`DRAWS`]: whether it is applied, then its parameters.
const BRIGHTNESS: [i64; 2] = [0, 1];
const SATURATION: [i64; 2] = [2, 3];
const CONTRAST: [i64; 2] = [4, 5];
const MIRROR: [i64; 2] = [6, 7];
const TURN: [i64; 2] = [8, 9];
const SHIFT: [i64; 3] = [10, 11, 12];
const CUTOUT: [i64; 3] = [13, 14, 15];

/// The value of a pixel that shift and cutout leave empty: 0 in [−1,1], where DiffAugment computes.
const GREY: f64 = 0.5;

/// Updates between two changes of an adaptive probability (arXiv 2006.06676, section 3.1, and this and the next in its published code).
const INTERVAL: f64 = 4.0;
/// Images over which an adaptive probability can rise by 1.
const RAMP: f64 = 500_000.0;
/// E sign D(x) over real x at which an adaptive probability stays (section 3.1).
const TARGET: f64 = 0.6;
/// Largest adaptive probability: from about here on, augmentations leak into generated images (section 2.2).
pub const MOST: f64 = 0.8;

/// The uniform numbers of a step's images, [B,[`DRAWS`]] each.
#[derive(Debug)]
pub struct AugmentDraws {
    /// Of real images.
    pub real: Tensor,
    /// Of generated images, in the discriminator's update.
    pub fake: Tensor,
    /// Of generated images, in the generator's update.
    pub generated: Tensor,
}

impl AugmentDraws {
    /// For B images.
    ///
    /// # Errors
    /// As [`Noise::uniform`].
    pub fn new(noise: &Noise, images: i64) -> Result<Self> {
        let draw = |name| noise.uniform(name, &[images, DRAWS]);
        Ok(AugmentDraws {
            real: draw("augment-real")?,
            fake: draw("augment-fake")?,
            generated: draw("augment-generated")?,
        })
    }

    /// Those of the images `from` to `from + count`.
    ///
    /// # Errors
    /// When there are not that many.
    pub fn narrow(&self, from: i64, count: i64) -> Result<Self> {
        let part = |t: &Tensor| t.f_narrow(0, from, count);
        Ok(AugmentDraws { real: part(&self.real)?, fake: part(&self.fake)?, generated: part(&self.generated)? })
    }
}

/// Augments images on a device. No number comes back to the host, so that a step with it can be captured.
#[derive(Debug)]
pub struct Augmenter {
    spec: AugmentSpec,
    shape: Shape,
    /// Indices of the rows [1,H,1] and columns [1,1,W], int64.
    rows: Tensor,
    columns: Tensor,
    /// The probability, a scalar.
    p: Tensor,
    /// Since p has last changed, scalars: the sum of sign D(x) over the real images, their number, the updates.
    signs: Tensor,
    images: Tensor,
    updates: Tensor,
}

impl Augmenter {
    /// For images of this shape; an adaptive probability starts at 0.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for an augmentation that these images do not take; libtorch's.
    pub fn new(spec: AugmentSpec, shape: Shape, device: Device) -> Result<Self> {
        let Shape { channels, height, width } = shape;
        if spec.list.contains(&Augmentation::Turn) && height != width {
            usage!(
                "--augment turn is for square images, and these have {height}x{width} pixels: leave it out, or add --image-size {}",
                height.min(width)
            );
        }
        if spec.list.contains(&Augmentation::Saturation) && channels == 1 {
            usage!("--augment saturation is for colour images, and these are grey: leave it out, or add --channels 3");
        }
        let scalar = |value| Tensor::f_full([] as [i64; 0], value, (Kind::Float, device));
        let indices = |n: i64, dims: [i64; 3]| Tensor::f_arange(n, (Kind::Int64, device))?.f_view(dims);
        let p = if let ApplyProbability::Fixed(p) = spec.p { p } else { 0.0 };
        Ok(Augmenter {
            shape,
            rows: indices(height, [1, -1, 1])?,
            columns: indices(width, [1, 1, -1])?,
            p: scalar(p)?,
            signs: scalar(0.0)?,
            images: scalar(0.0)?,
            updates: scalar(0.0)?,
            spec,
        })
    }

    /// Augmented x [N,C,H,W] in [0,1], by the numbers that `noise` draws under `name`.
    ///
    /// # Errors
    /// libtorch's; as [`Noise::uniform`].
    pub fn augmented(&self, x: &Tensor, noise: &Noise, name: &'static str) -> Result<Tensor> {
        self.apply(x, &noise.uniform(name, &[x.size()[0], DRAWS])?)
    }

    /// Augmented x [N,C,H,W] in [0,1], by uniform numbers in [0,1) [N,[`DRAWS`]]; differentiable in x. Values may leave [0,1], as in
    /// DiffAugment.
    ///
    /// # Errors
    /// libtorch's.
    pub fn apply(&self, x: &Tensor, uniform: &Tensor) -> Result<Tensor> {
        let draws = Draws { uniform, p: &self.p };
        self.moved(&self.coloured(x, &draws)?, &draws)
    }

    fn has(&self, any: &[Augmentation]) -> bool {
        any.iter().any(|augmentation| self.spec.list.contains(augmentation))
    }

    /// Brightness x + b, saturation m + s·(x − m) with a pixel's mean m over the colours, contrast M + c·(x − M) with the image's mean
    /// M: in turn (DiffAugment's order) they are c·s·x + c·(1 − s)·m + (1 − c)·M + b, which at b 0, s 1, c 1 is exactly x. Alpha stays.
    fn coloured(&self, x: &Tensor, draws: &Draws) -> Result<Tensor> {
        use Augmentation::{Brightness, Colour, Contrast, Saturation};
        if !self.has(&[Colour, Brightness, Saturation, Contrast]) {
            return Ok(x.shallow_clone());
        }
        let colours = self.shape.channels.min(3);
        let parts = x.f_split_with_sizes([colours, self.shape.channels - colours], 1)?;
        let [colour, alpha] = parts.as_slice() else { anyhow::bail!("the split did not give colours and alpha") };
        // How far the parameter is from the one that changes nothing.
        let by = |of: Augmentation, columns, scale, shift| match self.has(&[Colour, of]) {
            true => draws.number(columns, scale, shift).map(Some),
            false => Ok(None),
        };
        let mut out = colour.shallow_clone();
        let mean = |dims: &[i64]| colour.f_mean_dim(dims, true, x.kind());
        if let Some(s) = by(Saturation, SATURATION, 2.0, -1.0)?.filter(|_| colours == 3) {
            out = out.f_mul(&s.f_add_scalar(1.0)?)?.f_sub(&mean(&[1])?.f_mul(&s)?)?;
        }
        if let Some(c) = by(Contrast, CONTRAST, 1.0, -0.5)? {
            // The mean of an image is that of its pixels' means: the saturation does not change it.
            out = out.f_mul(&c.f_add_scalar(1.0)?)?.f_sub(&mean(&[1, 2, 3])?.f_mul(&c)?)?;
        }
        if let Some(b) = by(Brightness, BRIGHTNESS, 0.5, -0.25)? {
            out = out.f_add(&b)?;
        }
        Ok(if alpha.numel() == 0 { out } else { Tensor::f_cat(&[&out, alpha], 1)? })
    }

    /// Mirrored, turned, shifted, cut out. Each pixel of the result is one pixel of x or grey: whatever is asked for is one gather.
    fn moved(&self, x: &Tensor, draws: &Draws) -> Result<Tensor> {
        use Augmentation::{Cutout, Mirror, Shift, Turn};
        let Shape { channels, height, width } = self.shape;
        // The pixel of x that each pixel of the result is, from the last augmentation to the first.
        let (mut row, mut column) = (self.rows.shallow_clone(), self.columns.shallow_clone());
        let mut empty = None;
        if self.has(&[Cutout]) {
            let inside = |places: &Tensor, side: i64, number| -> Result<Tensor> {
                let size = share(side, 2);
                let from = draws.whole(number, side + 1 - size % 2)?.f_sub_scalar(size / 2)?;
                let place = places.f_sub(&from)?;
                Ok(place.f_ge(0)?.f_logical_and(&place.f_lt(size)?)?)
            };
            let [gate, down, right] = CUTOUT;
            let cut = inside(&row, height, down)?.f_logical_and(&inside(&column, width, right)?)?;
            empty = Some(cut.f_logical_and(&draws.gate(gate)?.f_view([-1, 1, 1])?)?); // [N,H,W]
        }
        if self.has(&[Shift]) {
            let [gate, down, right] = SHIFT;
            let gate = draws.gate(gate)?.f_view([-1, 1, 1])?;
            let shifted = |place: &Tensor, side: i64, number| -> Result<(Tensor, Tensor)> {
                let most = share(side, 8);
                let by = draws.whole(number, 2 * most + 1)?.f_sub_scalar(most)?.f_mul(&gate)?;
                let place = place.f_add(&by)?;
                let outside = place.f_lt(0)?.f_logical_or(&place.f_ge(side)?)?;
                Ok((place.f_clamp(0, side - 1)?, outside))
            };
            let ((r, above), (c, beside)) = (shifted(&row, height, down)?, shifted(&column, width, right)?);
            let outside = above.f_logical_or(&beside)?;
            empty = Some(empty.map_or(Ok(outside.shallow_clone()), |cut| cut.f_logical_or(&outside))?);
            (row, column) = (r, c);
        }
        if self.has(&[Turn]) {
            let quarters = draws.whole(TURN[1], 4)?.f_mul(&draws.gate(TURN[0])?.f_view([-1, 1, 1])?)?;
            let is = |k: i64| quarters.f_eq(k);
            let (odd, last) = (is(1)?.f_logical_or(&is(3)?)?, height - 1);
            let (r, c) = (column.f_where_self(&odd, &row)?, row.f_where_self(&odd, &column)?);
            row = r.f_rsub_scalar(last)?.f_where_self(&quarters.f_ge(2)?, &r)?;
            column = c.f_rsub_scalar(last)?.f_where_self(&is(1)?.f_logical_or(&is(2)?)?, &c)?;
        }
        if self.has(&[Mirror]) {
            let chosen = draws.gate(MIRROR[0])?.f_logical_and(&draws.column(MIRROR[1])?.f_lt(0.5)?)?;
            column = column.f_rsub_scalar(width - 1)?.f_where_self(&chosen.f_view([-1, 1, 1])?, &column)?;
        }
        let (n, pixels) = (x.size()[0], height * width);
        let mut out = x.shallow_clone();
        if self.has(&[Mirror, Turn, Shift]) {
            let from = row.f_mul_scalar(width)?.f_add(&column)?.f_expand([n, height, width], false)?;
            let from = from.f_reshape([n, 1, pixels])?.f_expand([n, channels, pixels], false)?;
            out =
                x.f_reshape([n, channels, pixels])?.f_gather(2, &from, false)?.f_view([n, channels, height, width])?;
        }
        Ok(empty.map_or(Ok(out.shallow_clone()), |empty| out.f_masked_fill(&empty.f_unsqueeze(1)?, GREY))?)
    }

    /// The probability, where it is adaptive: a scalar on the device.
    pub fn adaptive_p(&self) -> Option<&Tensor> {
        (self.spec.p == ApplyProbability::Adaptive).then_some(&self.p)
    }

    /// Counts one update with these logits [B] of augmented real images. At every fourth, an adaptive p moves by the images since the
    /// last change / 500,000: up where E sign D(x) is above 0.6, else down (arXiv 2006.06676, section 3.1).
    ///
    /// # Errors
    /// libtorch's.
    pub fn observe(&self, real_logits: &Tensor) -> Result<()> {
        if self.adaptive_p().is_none() {
            return Ok(());
        }
        let [mut p, mut signs, mut images, mut updates] =
            [&self.p, &self.signs, &self.images, &self.updates].map(Tensor::shallow_clone);
        tch::no_grad(|| {
            let _ = signs.f_add_(&real_logits.f_sign()?.f_sum(Kind::Float)?)?;
            let _ = images.f_add_scalar_(real_logits.size()[0] as f64)?;
            let _ = updates.f_add_scalar_(1.0)?;
            // By a factor, as a captured step cannot branch.
            let due = updates.f_ge(INTERVAL)?.f_to_kind(Kind::Float)?;
            let direction = signs.f_sub(&images.f_mul_scalar(TARGET)?)?.f_sign()?;
            let _ = p.f_add_(&direction.f_mul(&images)?.f_mul(&due)?.f_div_scalar(RAMP)?)?.f_clamp_(0.0, MOST)?;
            for counter in [&mut signs, &mut images, &mut updates] {
                let _ = counter.f_mul_(&due.f_rsub_scalar(1.0)?)?;
            }
            Ok(())
        })
    }

    /// What resuming needs, by name: the state of an adaptive probability.
    pub fn state(&self) -> Vec<(&'static str, &Tensor)> {
        let Augmenter { p, signs, images, updates, .. } = self;
        let all =
            [("augment.p", p), ("augment.signs", signs), ("augment.images", images), ("augment.updates", updates)];
        all.into_iter().filter(|_| self.adaptive_p().is_some()).collect()
    }
}

/// A share 1/`of` of a side, rounded half up as DiffAugment does.
fn share(side: i64, of: i64) -> i64 {
    (2 * side + of) / (2 * of)
}

/// The uniform numbers [N,[`DRAWS`]] of some images, and the probability.
struct Draws<'a> {
    uniform: &'a Tensor,
    p: &'a Tensor,
}

impl Draws<'_> {
    /// Numbers of one place, [N].
    fn column(&self, at: i64) -> Result<Tensor> {
        Ok(self.uniform.f_select(1, at)?)
    }

    /// Whether the augmentation whose first place this is is applied, bool [N].
    fn gate(&self, at: i64) -> Result<Tensor> {
        Ok(self.column(at)?.f_lt_tensor(self.p)?)
    }

    /// u·scale + shift where the augmentation is applied, else 0: [N,1,1,1].
    fn number(&self, [gate, at]: [i64; 2], scale: f64, shift: f64) -> Result<Tensor> {
        let number = self.column(at)?.f_mul_scalar(scale)?.f_add_scalar(shift)?;
        Ok(number.f_mul(&self.gate(gate)?)?.f_view([-1, 1, 1, 1])?)
    }

    /// Uniform among 0..n, int64 [N,1,1].
    fn whole(&self, at: i64, n: i64) -> Result<Tensor> {
        // Below n: float32 rounds the product with its largest number below 1 down.
        let whole = self.column(at)?.f_mul_scalar(n as f64)?.f_floor()?;
        Ok(whole.f_to_kind(Kind::Int64)?.f_view([-1, 1, 1])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::batch::Batch;
    use crate::base::setting::AnySetting;
    use crate::base::timer::StepTimer;
    use crate::models::gan::{Gan, GanSpec};
    use crate::models::losses::adversarial::GanLoss;
    use crate::models::optimizer::OptimizerSettings;
    use crate::models::{Model, StepContext};
    use crate::native::AdamSettings;
    use crate::nets::graph::Init;
    use crate::nets::{Activation, Arch, NetSpec};

    const ALL: &str = "colour,mirror,turn,shift,cutout";

    fn augmenter(list: &str, p: ApplyProbability, [channels, height, width]: [i64; 3]) -> Result<Augmenter> {
        let spec = AugmentSpec { list: read_list(list).unwrap(), p };
        Augmenter::new(spec, Shape { channels, height, width }, Device::Cpu)
    }

    fn random(seed: u64, dims: &[i64]) -> Tensor {
        Noise::new(seed as i64, Device::Cpu).uniform("x", dims).unwrap()
    }

    /// Share of the images that are not what they were.
    fn changed(x: &Tensor, y: &Tensor) -> f64 {
        x.ne_tensor(y).flatten(1, -1).any_dim(1, false).to_kind(Kind::Double).mean(None).double_value(&[])
    }

    #[test]
    fn at_probability_0_no_bit_changes() {
        let x = random(1, &[64, 4, 6, 6]);
        let y = augmenter(ALL, ApplyProbability::Fixed(0.0), [4, 6, 6]).unwrap().apply(&x, &random(2, &[64, DRAWS]));
        assert_eq!(y.unwrap(), x);
    }

    #[test]
    fn the_probability_is_the_share_of_images() {
        let n = 8000;
        let (x, uniform) = (random(3, &[n, 3, 8, 8]), random(4, &[n, DRAWS]));
        let p = 0.3;
        for (list, want) in [
            ("brightness", p),
            ("saturation", p),
            ("contrast", p),
            ("cutout", p),
            // Half of the chosen ones, a quarter, a ninth by the parameter stay as they are.
            ("mirror", p / 2.0),
            ("turn", p * 3.0 / 4.0),
            ("shift", p * 8.0 / 9.0),
            // Each by itself.
            ("colour", 1.0 - (1.0 - p) * (1.0 - p) * (1.0 - p)),
            ("brightness,cutout", 1.0 - (1.0 - p) * (1.0 - p)),
        ] {
            let y = augmenter(list, ApplyProbability::Fixed(p), [3, 8, 8]).unwrap().apply(&x, &uniform).unwrap();
            let share = changed(&x, &y);
            // Four standard deviations of a share of n images.
            assert!(
                (share - want).abs() < 4.0 * (want * (1.0 - want) / n as f64).sqrt(),
                "{list}: {share}, not {want}"
            );
        }
    }

    #[test]
    fn the_numbers_at_the_ends_of_their_range_are_places_in_the_image() {
        let (ends, p) = ([0.0, 1.0 - f64::from(f32::EPSILON) / 2.0], Tensor::from(1f32));
        let uniform = Tensor::from_slice(&ends).to_kind(Kind::Float).view([2, 1]);
        for n in 1..10_000 {
            let whole = Draws { uniform: &uniform, p: &p }.whole(0, n).unwrap();
            assert_eq!(Vec::<i64>::try_from(whole.flatten(0, -1)).unwrap(), [0, n - 1]);
        }
        for dims in [[1, 1, 1], [3, 2, 2], [4, 9, 9]] {
            let x = random(5, &[2, dims[0], dims[1], dims[2]]);
            let all = augmenter(ALL, ApplyProbability::Fixed(1.0), dims).unwrap();
            for u in ends {
                let y = all.apply(&x, &Tensor::full([2, DRAWS], u, (Kind::Float, Device::Cpu))).unwrap();
                assert_eq!((y.size(), y.isfinite().all().int64_value(&[])), (x.size(), 1));
            }
        }
    }

    #[test]
    fn images_of_a_step_follow_its_seed_and_differ_between_its_draws() {
        let all = augmenter(ALL, ApplyProbability::Fixed(1.0), [3, 8, 8]).unwrap();
        let x = random(6, &[16, 3, 8, 8]);
        let draw = |seed, name| all.augmented(&x, &Noise::new(seed, Device::Cpu), name).unwrap();
        assert_eq!(draw(1, "augment-real"), draw(1, "augment-real"));
        assert_eq!(changed(&draw(1, "augment-real"), &draw(1, "augment-fake")), 1.0);
        assert_eq!(changed(&draw(1, "augment-real"), &draw(2, "augment-real")), 1.0);
    }

    #[test]
    fn an_adaptive_probability_follows_how_sure_the_discriminator_is() {
        let adaptive = augmenter(ALL, ApplyProbability::Adaptive, [3, 8, 8]).unwrap();
        let p = || adaptive.adaptive_p().unwrap().double_value(&[]);
        let seen = |positive: i64, of: i64, updates: u32| {
            let logits = Tensor::cat(
                &[
                    Tensor::ones([positive], (Kind::Float, Device::Cpu)) * 3.0,
                    -Tensor::ones([of - positive], (Kind::Float, Device::Cpu)),
                ],
                0,
            );
            (0..updates).for_each(|_| adaptive.observe(&logits).unwrap());
            (p() * 1e4).round() / 1e4
        };
        assert_eq!(seen(0, 5000, 4), 0.0, "not below 0");
        assert_eq!(seen(5000, 5000, 3), 0.0, "every fourth update");
        assert_eq!(seen(5000, 5000, 1), 0.04, "by 20,000 / 500,000");
        // E sign D(x) is 0.62, then 0.58.
        assert_eq!(seen(4050, 5000, 4), 0.08);
        assert_eq!(seen(3950, 5000, 4), 0.04);
        // Within an interval, the mean decides, and every image counts once: here 0.69 of 15,100 images.
        assert_eq!(seen(0, 100, 1), 0.04);
        assert_eq!(seen(4250, 5000, 3), 0.0702);
        assert_eq!(seen(5000, 5000, 4 * 50), 0.8, "not above 0.8");
        assert_eq!(seen(0, 5000, 4 * 50), 0.0);
        let fixed = augmenter(ALL, ApplyProbability::Fixed(0.5), [3, 8, 8]).unwrap();
        assert!(fixed.adaptive_p().is_none() && fixed.state().is_empty());
    }

    #[test]
    fn a_list_names_each_augmentation_once_and_is_refused_for_images_that_do_not_take_it() {
        let check = |text: &str| AUGMENT.check(&Toml::String(text.into()));
        assert_eq!(check("cutout, shift,colour"), Ok(Toml::String("colour,shift,cutout".into())));
        assert_eq!(check("none"), Ok(Toml::String("none".into())));
        for wrong in ["shift,shift", "color", "", "none,shift"] {
            assert!(check(wrong).unwrap_err().contains("shift,colour,cutout"), "{wrong}");
        }
        let p = |text: &str| AUGMENT_P.check(&Toml::String(text.into()));
        assert_eq!(p("adaptive"), Ok(Toml::String("adaptive".into())));
        assert_eq!(p("0.25"), Ok(Toml::Float(0.25)));
        assert!(p("1.01").is_err() && p("nan").is_err() && p("-0.1").is_err());
        let refused = |list: &str, dims| augmenter(list, ApplyProbability::Fixed(1.0), dims).unwrap_err().to_string();
        assert!(refused("turn", [3, 8, 6]).contains("8x6 pixels: leave it out, or add --image-size 6"));
        assert!(refused("saturation", [1, 8, 8]).contains("these are grey"));
        assert!(augmenter("colour,mirror,shift,cutout", ApplyProbability::Fixed(1.0), [1, 8, 6]).is_ok());
        let alone = Settings::default().with(&AUGMENT_P, ApplyProbability::Adaptive);
        assert!(AugmentSpec::from_settings(&alone).unwrap_err().to_string().contains("no effect without --augment"));
    }

    /// Images dark on the left and bright on the right: every augmentation but saturation spoils that. A generator that is trained
    /// with them makes such images all the same; one whose own images are not augmented learns to make spoilt ones.
    #[test]
    fn augmentations_do_not_show_in_samples() {
        let net = || NetSpec {
            arch: Arch::Mlp,
            hidden: vec![64],
            activation: Activation::LeakyRelu,
            batch_norm: false,
            init: Init::PyTorch,
            ..NetSpec::default()
        };
        let shape = Shape { channels: 1, height: 8, width: 8 };
        let nets = [NetSpec { activation: Activation::Relu, ..net() }, net()];
        let augment = Some(AugmentSpec { list: read_list(ALL).unwrap(), p: ApplyProbability::Fixed(0.5) });
        let spec = GanSpec { augment, ..GanSpec::new(shape, 8, nets, GanLoss::NonSaturating) };
        let adam = AdamSettings { lr: 1e-3, beta1: 0.5, ..AdamSettings::default() };
        let hyper = OptimizerSettings { adam, ..OptimizerSettings::default() };
        let mut gan = crate::native::seeded(1, || Gan::new(spec, hyper, Device::Cpu)).unwrap();
        let sides = |x: &Tensor| [0, 4].map(|from| x.narrow(3, from, 4).mean_dim([1i64, 2, 3].as_slice(), false, None));
        // 100 images: left in 0.05 to 0.25, right in 0.75 to 0.95, each with a level of its own.
        let level = random(7, &[100, 1, 1, 1]) * 0.15;
        let left = random(8, &[100, 1, 8, 4]) * 0.05 + 0.05 + &level;
        let x = Tensor::cat(&[&left, &(random(9, &[100, 1, 8, 4]) * 0.05 + 0.75 + &level)], 3);
        for step in 0..1500 {
            let (noise, timer) = (Noise::new(step, Device::Cpu), StepTimer::off());
            let batch = Batch { x: x.narrow(0, step % 2 * 50, 50), labels: None };
            let _values = gan.step(&batch, StepContext { noise: &noise, timer: &timer, on_device: false }).unwrap();
        }
        let made = gan.decode(&Noise::new(0, Device::Cpu).normal("z", &[500, 8]).unwrap(), None).unwrap();
        let [left, right] = sides(&made);
        let share = |right: Tensor| right.to_kind(Kind::Double).mean(None).double_value(&[]);
        let (dark, bright) = (share(left.lt(0.35)), share(right.gt(0.65)));
        assert!(dark > 0.97 && bright > 0.97, "dark on the left {dark}, bright on the right {bright}: {left}, {right}");
    }
}
