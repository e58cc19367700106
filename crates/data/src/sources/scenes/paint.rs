//! Paints scenes.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use image::RgbImage;
use rand_chacha::ChaCha8Rng;

use super::effects::{self, STAMP_FIGURE, backdrop, on, rendered, tinted};
use super::garments::{Body, Wardrobe, lead};
use super::layer::{Layer, Rgb, Sprite, luma, mix};
use super::scene::{Background, Content, Extra, Look, Operation, Relation, Rendition, Scene};
use super::world::World;
use crate::sources::emoji::style::Style;
use tessera_base::random::uniform;

const WHITE: Rgb = [1.0; 3];
/// The name of the thing that is walked on a lead.
const DOG: &str = "dog";

/// Paints scenes of one size. Caches the drawing of each thing after its first use.
#[derive(Debug)]
pub(super) struct Painter {
    side: usize,
    sprites: Vec<BTreeMap<Style, OnceLock<Option<Sprite>>>>,
    wardrobe: Wardrobe,
    dog: usize,
}

impl Painter {
    pub(super) fn new(world: &World, side: u32) -> Result<Self> {
        let styles = |thing: &super::world::Thing| {
            thing.drawings.keys().map(|&style| (style, OnceLock::new())).collect()
        };
        Ok(Self {
            side: side as usize,
            sprites: world.things.iter().map(styles).collect(),
            wardrobe: Wardrobe::new(side)?,
            dog: world.find(DOG).context("things.txt lists no dog to walk")?,
        })
    }

    /// Paints the scene. Returns `None` if one of the drawings is blank.
    pub(super) fn paint(
        &self,
        world: &World,
        scene: &Scene,
        rng: &mut ChaCha8Rng,
    ) -> Result<Option<RgbImage>> {
        let mut stage = Stage { painter: self, world, style: scene.style, rng };
        let Some(picture) = stage.picture(scene)? else { return Ok(None) };
        picture.into_image().map(Some)
    }

    /// Returns the drawing of a thing in `style`, or in its first available style.
    fn sprite(&self, world: &World, thing: usize, style: Style) -> Result<Option<&Sprite>> {
        let drawings = &world.things[thing].drawings;
        let style = if drawings.contains_key(&style) {
            style
        } else {
            *drawings.keys().next().context("no drawing")?
        };
        let slot = self.sprites[thing].get(&style).context("no drawing of that style")?;
        if let Some(sprite) = slot.get() {
            return Ok(sprite.as_ref());
        }
        let sprite = Sprite::draw(&drawings[&style], self.side as u32).with_context(|| {
            format!("cannot draw {:?} in {} style", world.things[thing].name, style.name())
        })?;
        Ok(slot.get_or_init(|| sprite).as_ref())
    }
}

/// A scene that is being painted.
struct Stage<'a> {
    painter: &'a Painter,
    world: &'a World,
    style: Style,
    rng: &'a mut ChaCha8Rng,
}

impl Stage<'_> {
    fn picture(&mut self, scene: &Scene) -> Result<Option<Layer>> {
        let side = self.painter.side;
        let background = match scene.background {
            Background::White => WHITE,
            Background::Named(colour) => backdrop(colour),
        };
        let figures = match scene.content {
            Content::One { thing, look } => self.one(thing, look)?,
            Content::Several { thing, count } => self.several(thing, count)?,
            Content::Two { first, second, relation } => self.two(first, second, relation)?,
            Content::MadeOf { whole, part } => self.made_of(whole, part)?,
            Content::ShapedLike { surface, shape } => self.shaped_like(surface, shape)?,
            Content::Dressed { thing, ref extras, held } => self.dressed(thing, extras, held)?,
            Content::Rendered { thing, rendition } => {
                let share =
                    self.between(0.62, 0.88) * if rendition == Rendition::Stamp { STAMP_FIGURE } else { 1.0 };
                let figure = self.alone(thing, [side, side], share)?;
                return Ok(figure.map(|figure| rendered(&figure, rendition)));
            }
            Content::Panels { thing, operation } => return self.panels(thing, operation),
        };
        Ok(figures.map(|figures| on(figures, background)))
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * uniform(self.rng)
    }

    /// Returns the drawing of a thing. Its longer side is the fraction `share` of the picture's
    /// side.
    fn drawing(&self, thing: usize, share: f32) -> Result<Option<Layer>> {
        let sprite = self.painter.sprite(self.world, thing, self.style)?;
        let side = (share * self.painter.side as f32).round().max(2.0) as usize;
        sprite.map(|sprite| sprite.scaled(side)).transpose()
    }

    /// Returns a transparent canvas with the thing in its middle. The thing's longer side is the
    /// fraction `share` of the canvas's shorter side.
    fn alone(&mut self, thing: usize, [width, height]: [usize; 2], share: f32) -> Result<Option<Layer>> {
        let share = share * width.min(height) as f32 / self.painter.side as f32;
        let Some(drawing) = self.drawing(thing, share)? else { return Ok(None) };
        let mut canvas = Layer::clear(width, height);
        centred(&mut canvas, &drawing, [0.5, 0.5]);
        Ok(Some(canvas))
    }

    fn canvas(&self) -> Layer {
        Layer::clear(self.painter.side, self.painter.side)
    }

    fn one(&mut self, thing: usize, look: Look) -> Result<Option<Layer>> {
        let share = match look {
            Look::Plain | Look::Coloured(_) | Look::UpsideDown => self.between(0.55, 0.92),
            Look::Tiny => self.between(0.18, 0.27),
            Look::Huge => self.between(1.15, 1.35),
        };
        let Some(drawing) = self.drawing(thing, share)? else { return Ok(None) };
        let drawing = match look {
            Look::Plain | Look::Tiny | Look::Huge => drawing,
            Look::Coloured(colour) => tinted(drawing, colour),
            Look::UpsideDown => drawing.upside_down(),
        };
        let slack = (1.0 - share).max(0.0) * 0.42;
        let place = [0.5 + self.between(-slack, slack), 0.5 + self.between(-slack, slack)];
        let mut canvas = self.canvas();
        centred(&mut canvas, &drawing, place);
        Ok(Some(canvas))
    }

    fn several(&mut self, thing: usize, count: usize) -> Result<Option<Layer>> {
        let (places, share): (&[[f32; 2]], f32) = match count {
            2 => (&[[0.26, 0.5], [0.74, 0.5]], 0.44),
            3 => (&[[0.5, 0.27], [0.26, 0.73], [0.74, 0.73]], 0.42),
            _ => (&[[0.27, 0.27], [0.73, 0.27], [0.27, 0.73], [0.73, 0.73]], 0.41),
        };
        let share = share * self.between(0.82, 1.0);
        let Some(drawing) = self.drawing(thing, share)? else { return Ok(None) };
        let mut canvas = self.canvas();
        for place in places {
            let place = [place[0] + self.between(-0.02, 0.02), place[1] + self.between(-0.02, 0.02)];
            centred(&mut canvas, &drawing, place);
        }
        Ok(Some(canvas))
    }

    fn two(&mut self, first: usize, second: usize, relation: Relation) -> Result<Option<Layer>> {
        let (near, far) = ([0.26, 0.5], [0.74, 0.5]);
        let (high, low) = ([0.5, 0.26], [0.5, 0.74]);
        let (places, shares) = match relation {
            Relation::SideBySide | Relation::LeftOf => ([near, far], [0.46, 0.46]),
            Relation::RightOf => ([far, near], [0.46, 0.46]),
            Relation::Above => ([high, low], [0.46, 0.46]),
            Relation::Below => ([low, high], [0.46, 0.46]),
            Relation::InFrontOf => ([[0.36, 0.66], [0.6, 0.4]], [0.5, 0.74]),
        };
        let scale = self.between(0.85, 1.0);
        let front = self.drawing(first, shares[0] * scale)?;
        let back = self.drawing(second, shares[1] * scale)?;
        let (Some(front), Some(back)) = (front, back) else { return Ok(None) };
        let mut canvas = self.canvas();
        let shift = [self.between(-0.03, 0.03), self.between(-0.03, 0.03)];
        for (drawing, place) in [(&back, places[1]), (&front, places[0])] {
            centred(&mut canvas, drawing, [place[0] + shift[0], place[1] + shift[1]]);
        }
        Ok(Some(canvas))
    }

    /// Paints small copies of `part` within the outline of `whole`, whose lines stay faintly
    /// visible.
    fn made_of(&mut self, whole: usize, part: usize) -> Result<Option<Layer>> {
        let side = self.painter.side;
        let share = self.between(0.8, 0.95);
        let figure = self.alone(whole, [side, side], share)?;
        let pieces = self.drawing(part, 0.17)?;
        let (Some(figure), Some(piece)) = (figure, pieces) else { return Ok(None) };
        let mut filling = figure.clone().recoloured(|colour| mix(colour, WHITE, 0.45));
        let step = 0.15 * side as f32;
        let rows = (side as f32 / step) as i32 + 1;
        for row in 0..rows {
            for column in -1..rows {
                let x = (column as f32 + 0.5 * (row % 2) as f32 + 0.5) * step;
                let place = [x / side as f32, (row as f32 + 0.5) * step / side as f32];
                centred(&mut filling, &piece, place);
            }
        }
        let (mask, lines) = (figure.alpha(), figure.brightness().edges());
        let outline = mask.edges();
        let mut ink = Layer::filled(side, side, [0.12, 0.1, 0.1]);
        for (n, pixel) in ink.pixels.iter_mut().enumerate() {
            let strength = (1.8 * outline.values[n] + 0.9 * lines.values[n]).min(0.85);
            *pixel = pixel.map(|value| value * strength);
        }
        let mut filling = filling.within(&mask);
        filling.lay(&ink, 0, 0);
        Ok(Some(filling))
    }

    /// Paints the surface of one thing within the outline of another, whose light and shade are
    /// kept.
    fn shaped_like(&mut self, surface: usize, shape: usize) -> Result<Option<Layer>> {
        let side = self.painter.side;
        let share = self.between(0.8, 0.95);
        let figure = self.alone(shape, [side, side], share)?;
        let skin = self.drawing(surface, 1.35)?;
        let (Some(figure), Some(skin)) = (figure, skin) else { return Ok(None) };
        let sum =
            skin.pixels.iter().fold([0.0; 4], |sum: [f32; 4], p| std::array::from_fn(|c| sum[c] + p[c]));
        let base: Rgb = std::array::from_fn(|c| sum[c] / sum[3].max(1e-3));
        let mut cloth = Layer::filled(side, side, base);
        centred(&mut cloth, &skin, [0.5, 0.5]);
        let outline = figure.alpha().edges();
        for (n, pixel) in cloth.pixels.iter_mut().enumerate() {
            let [r, g, b, a] = figure.pixels[n];
            let light = if a > 0.0 { luma([r / a, g / a, b / a]) } else { 0.0 };
            let shade = (0.5 + 0.6 * light) * (1.0 - 0.9 * outline.values[n]).max(0.2);
            *pixel = [pixel[0] * shade, pixel[1] * shade, pixel[2] * shade, 1.0].map(|value| value.min(1.0));
        }
        Ok(Some(cloth.within(&figure.alpha())))
    }

    fn dressed(&mut self, thing: usize, extras: &[Extra], held: Option<usize>) -> Result<Option<Layer>> {
        let leads = extras.contains(&Extra::WalkingDog);
        let is_baby = extras.contains(&Extra::Baby);
        let share =
            self.between(0.56, 0.68) * if leads { 0.84 } else { 1.0 } * if is_baby { 0.82 } else { 1.0 };
        let Some(drawing) = self.drawing(thing, share)? else { return Ok(None) };
        let mut canvas = self.canvas();
        centred(&mut canvas, &drawing, if leads { [0.32, 0.52] } else { [0.48, 0.56] });
        let Some(body) = Body::of(&canvas) else { return Ok(None) };
        self.wear(&mut canvas, thing, &body, extras)?;
        if let Some(held) = held {
            let Some(held) = self.drawing(held, 0.3)? else { return Ok(None) };
            let side = self.painter.side as f32;
            let hand = [(body.left + 0.92 * body.width) / side, (body.top + 0.68 * body.height) / side];
            centred(&mut canvas, &held, hand);
        }
        if leads {
            self.lead_dog(&mut canvas, &body)?;
        }
        Ok(Some(canvas))
    }

    fn wear(&self, canvas: &mut Layer, thing: usize, body: &Body, extras: &[Extra]) -> Result<()> {
        let kind = self.world.things[thing].kind;
        // The sweater is below all other garments.
        let (wool, rest): (Vec<Extra>, Vec<Extra>) =
            extras.iter().partition(|&&extra| extra == Extra::Sweater);
        wool.into_iter()
            .chain(rest)
            .try_for_each(|extra| self.painter.wardrobe.wear(canvas, kind, body, extra))
    }

    /// Paints a dog on a lead at the figure's feet.
    fn lead_dog(&mut self, canvas: &mut Layer, body: &Body) -> Result<()> {
        let dog = self.painter.dog;
        let Some(drawing) = self.drawing(dog, 0.36)? else { return Ok(()) };
        let drawing = drawing.mirrored();
        let side = self.painter.side as f32;
        let feet = (body.top + body.height).min(side);
        let (x, y) = (0.79 * side, feet - drawing.height as f32 / 2.0);
        let hand = [body.left + 0.9 * body.width, body.top + 0.6 * body.height];
        lead(canvas, hand, [x, y - 0.1 * drawing.height as f32]);
        centred(canvas, &drawing, [x / side, y / side]);
        Ok(())
    }

    /// Paints the thing in the upper panel, and the same thing after the operation in the lower
    /// panel.
    fn panels(&mut self, thing: usize, operation: Operation) -> Result<Option<Layer>> {
        let (width, height) = (self.painter.side, self.painter.side / 2);
        let share = self.between(0.76, 0.92);
        let size = [width, height];
        let Some(above) = self.alone(thing, size, share)? else { return Ok(None) };
        let below = match operation {
            Operation::Sketch => rendered(&above, Rendition::Sketch),
            Operation::XRay => rendered(&above, Rendition::XRay),
            Operation::Silhouette => rendered(&above, Rendition::Silhouette),
            Operation::BlackAndWhite => rendered(&above, Rendition::BlackAndWhite),
            Operation::UpsideDown => on(above.upside_down(), WHITE),
            Operation::Coloured(colour) => on(tinted(above.clone(), colour), WHITE),
            Operation::Sunglasses => {
                let mut dressed = above.clone();
                if let Some(body) = Body::of(&dressed) {
                    self.wear(&mut dressed, thing, &body, &[Extra::Sunglasses])?;
                }
                on(dressed, WHITE)
            }
            Operation::Stamp => {
                let Some(small) = self.alone(thing, size, share * STAMP_FIGURE)? else { return Ok(None) };
                rendered(&small, Rendition::Stamp)
            }
        };
        let mut picture = Layer::filled(width, self.painter.side, WHITE);
        picture.lay(&effects::on(above, WHITE), 0, 0);
        picture.lay(&below, 0, height as i32);
        Ok(Some(picture))
    }
}

/// Draws `layer` with its centre at `place`, given in fractions of the canvas.
fn centred(canvas: &mut Layer, layer: &Layer, place: [f32; 2]) {
    let left = place[0] * canvas.width as f32 - layer.width as f32 / 2.0;
    let top = place[1] * canvas.height as f32 - layer.height as f32 / 2.0;
    canvas.lay(layer, left.round() as i32, top.round() as i32);
}
