//! Places clothes, held things and leads on characters. The positions of head, neck and waist are
//! estimated from the outline.

use anyhow::{Context, Result};

use super::layer::{Layer, Plane, Rgb, Sprite, luma, mix};
use super::scene::Extra;
use super::world::Kind;

/// Our own drawings of garments, at the largest size that scenes use.
#[derive(Debug)]
pub(super) struct Wardrobe {
    crown: Sprite,
    hat: Sprite,
    sunglasses: Sprite,
    scarf: Sprite,
    tutu: Sprite,
    face: Sprite,
}

impl Wardrobe {
    pub(super) fn new(side: u32) -> Result<Self> {
        let draw = |svg| Sprite::draw(svg, side)?.context("a garment is blank");
        Ok(Self {
            crown: draw(include_str!("drawings/crown.svg"))?,
            hat: draw(include_str!("drawings/hat.svg"))?,
            sunglasses: draw(include_str!("drawings/sunglasses.svg"))?,
            scarf: draw(include_str!("drawings/scarf.svg"))?,
            tutu: draw(include_str!("drawings/tutu.svg"))?,
            face: draw(include_str!("drawings/face.svg"))?,
        })
    }

    /// Draws `extra` onto the only figure on `canvas`. A dog is not drawn here.
    pub(super) fn wear(&self, canvas: &mut Layer, kind: Kind, body: &Body, extra: Extra) -> Result<()> {
        let Body { left, top, width, height, head_x, head_top, .. } = *body;
        let (middle, head) = (left + width / 2.0, body.head_width(kind));
        let is_animal = kind == Kind::Animal;
        let at = |share: f32| top + share * height;
        match extra {
            Extra::Crown => put_above(canvas, &self.crown, head_x, head_top + 0.06 * height, 0.72 * head),
            Extra::Hat => put_above(canvas, &self.hat, head_x, head_top + 0.06 * height, 0.9 * head),
            Extra::Sunglasses => {
                let eyes = at(match kind {
                    Kind::Animal => 0.17,
                    Kind::Face => 0.45,
                    Kind::Plant | Kind::Produce | Kind::Food | Kind::Place | Kind::Object => 0.48,
                });
                put(canvas, &self.sunglasses, if is_animal { head_x } else { middle }, eyes, head)
            }
            Extra::Scarf => match is_animal {
                true => put(canvas, &self.scarf, head_x, at(0.4), head),
                false => put(canvas, &self.scarf, middle, at(0.78), 0.86 * width),
            },
            Extra::Tutu => put(canvas, &self.tutu, middle, at(0.7), 1.08 * width),
            Extra::Baby => put(canvas, &self.face, middle, at(0.56), 0.48 * width),
            Extra::Sweater => {
                knit(canvas, body, if is_animal { [0.36, 0.8] } else { [0.56, 0.94] });
                Ok(())
            }
            Extra::WalkingDog => Ok(()),
        }
    }
}

/// The positions of the parts of a figure, in pixels of its canvas.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) left: f32,
    pub(super) top: f32,
    pub(super) width: f32,
    pub(super) height: f32,
    /// The horizontal middle of the head.
    head_x: f32,
    /// The upper edge of the head.
    head_top: f32,
    alpha: Plane,
}

impl Body {
    /// Measures the only figure on `canvas`. Returns `None` if the canvas is empty.
    pub(super) fn of(canvas: &Layer) -> Option<Self> {
        let [left, top, right, bottom] = canvas.bounds()?;
        let height = bottom - top;
        // The head is the part in the upper seventh.
        let crown = top..(top + (height / 7).max(1));
        let is_seen = |x: usize, y: usize| canvas.pixels[y * canvas.width + x][3] > 0.5;
        let columns: Vec<usize> = crown.flat_map(|y| (left..right).filter(move |&x| is_seen(x, y))).collect();
        let count = columns.len().max(1) as f32;
        let head_x = columns.iter().sum::<usize>() as f32 / count;
        let column = head_x as usize;
        let head_top = (top..bottom).find(|&y| is_seen(column.min(canvas.width - 1), y)).unwrap_or(top);
        Some(Self {
            left: left as f32,
            top: top as f32,
            width: (right - left) as f32,
            height: height as f32,
            head_x,
            head_top: head_top as f32,
            alpha: canvas.alpha(),
        })
    }

    fn head_width(&self, kind: Kind) -> f32 {
        match kind {
            Kind::Animal => 0.46 * self.width.min(1.2 * self.height),
            Kind::Face | Kind::Plant | Kind::Produce | Kind::Food | Kind::Place | Kind::Object => {
                0.72 * self.width
            }
        }
    }
}

/// Draws a sprite with a width of `width` pixels and its centre at (`x`, `y`).
pub(super) fn put(canvas: &mut Layer, sprite: &Sprite, x: f32, y: f32, width: f32) -> Result<()> {
    let height = width * sprite.height as f32 / sprite.width as f32;
    let layer = sprite.stretched(width.round() as usize, height.round() as usize)?;
    canvas.lay(&layer, (x - width / 2.0).round() as i32, (y - height / 2.0).round() as i32);
    Ok(())
}

/// Draws a sprite with a width of `width` pixels and its lower edge at `bottom`.
fn put_above(canvas: &mut Layer, sprite: &Sprite, x: f32, bottom: f32, width: f32) -> Result<()> {
    let height = width * sprite.height as f32 / sprite.width as f32;
    put(canvas, sprite, x, bottom - height / 2.0, width)
}

/// Draws a christmas sweater: the part of the figure between two heights becomes red wool with a
/// pattern.
fn knit(canvas: &mut Layer, body: &Body, [from, to]: [f32; 2]) {
    let (red, white, green): (Rgb, Rgb, Rgb) = ([0.78, 0.12, 0.14], [0.97, 0.95, 0.92], [0.10, 0.48, 0.24]);
    let [first, last] = [from, to].map(|share| (body.top + share * body.height) as usize);
    let rows = (last - first).max(1) as f32;
    for y in first..last.min(canvas.height) {
        for x in 0..canvas.width {
            let n = y * canvas.width + x;
            let alpha = body.alpha.values[n];
            if alpha == 0.0 {
                continue;
            }
            let down = (y - first) as f32 / rows;
            let zigzag = ((x % 8) as f32 - 4.0).abs() / 4.0;
            let wool = match down {
                d if !(0.12..=0.9).contains(&d) => green,
                d if (d - 0.34 - 0.1 * zigzag).abs() < 0.07 => white,
                d if (d - 0.62).abs() < 0.08 && x % 6 < 2 => white,
                _ => red,
            };
            let shade = luma([canvas.pixels[n][0], canvas.pixels[n][1], canvas.pixels[n][2]]);
            let [r, g, b] = mix(wool.map(|value| value * 0.8), wool, shade);
            canvas.pixels[n] = [r * alpha, g * alpha, b * alpha, alpha];
        }
    }
}

/// Draws a slightly sagging lead between two points.
pub(super) fn lead(canvas: &mut Layer, from: [f32; 2], to: [f32; 2]) {
    let dot = Layer::filled(2, 2, [0.45, 0.16, 0.12]);
    let steps = 2 * canvas.width;
    for step in 0..=steps {
        let t = step as f32 / steps as f32;
        let x = from[0] + (to[0] - from[0]) * t;
        let y = from[1] + (to[1] - from[1]) * t + 0.07 * canvas.height as f32 * 4.0 * t * (1.0 - t);
        canvas.lay(&dot, x.round() as i32 - 1, y.round() as i32 - 1);
    }
}
