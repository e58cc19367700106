//! Renders a figure as an x-ray, a sketch, a postage stamp, an eraser and so on.
//!
//! Each rendition takes a figure on a transparent background and returns an opaque picture of the
//! same size.

use super::layer::{Layer, Plane, Rgb, luma, mix};
use super::scene::{Colour, Rendition};

const WHITE: Rgb = [1.0, 1.0, 1.0];
const BLACK: Rgb = [0.06, 0.06, 0.07];

/// Renders the figure in one of the renditions.
pub(super) fn rendered(figure: &Layer, rendition: Rendition) -> Layer {
    match rendition {
        Rendition::XRay => x_ray(figure),
        Rendition::Sketch => sketch(figure),
        Rendition::Silhouette => on(figure.clone().recoloured(|_| BLACK), WHITE),
        Rendition::BlackAndWhite => on(figure.clone().recoloured(|colour| [luma(colour); 3]), WHITE),
        Rendition::PixelArt => pixel_art(figure),
        Rendition::Neon => neon(figure),
        Rendition::Stamp => stamp(figure),
        Rendition::Eraser => eraser(figure),
    }
}

/// The maximum size of the figure on a stamp, as a fraction of the stamp's side.
pub(super) const STAMP_FIGURE: f32 = 0.62;

/// Draws the figure on an opaque background colour.
pub(super) fn on(figure: Layer, background: Rgb) -> Layer {
    let mut picture = Layer::filled(figure.width, figure.height, background);
    picture.lay(&figure, 0, 0);
    picture
}

/// Renders an x-ray: dark parts of the figure are pale, its outline is bright, and the background
/// is dark film.
fn x_ray(figure: &Layer) -> Layer {
    let (film, bone) = ([0.03, 0.06, 0.11], [0.82, 0.94, 1.0]);
    let (alpha, brightness) = (figure.alpha(), figure.brightness());
    let (outline, lines) = (alpha.edges(), brightness.edges());
    let value = |n: usize| {
        let body = alpha.values[n] * (0.22 + 0.5 * (1.0 - brightness.values[n]));
        let edges = alpha.values[n] * (1.3 * outline.values[n] + 1.6 * lines.values[n]);
        (body + edges).min(1.0)
    };
    painted(figure, |n| mix(film, bone, value(n)))
}

/// Renders a pencil sketch: dark lines on paper where the brightness changes, and hatching where
/// the figure is dark.
fn sketch(figure: &Layer) -> Layer {
    let (paper, lead) = ([0.97, 0.96, 0.93], [0.22, 0.22, 0.24]);
    let (alpha, brightness) = (figure.alpha(), figure.brightness());
    let (outline, lines) = (alpha.edges(), brightness.edges());
    painted(figure, |n| {
        let (x, y) = (n % figure.width, n / figure.width);
        let line = 2.2 * outline.values[n] + 3.0 * lines.values[n];
        let darkness = alpha.values[n] * (1.0 - brightness.values[n]);
        let is_hatched = (x + y) % 4 == 0 && darkness > 0.3 || (x + y) % 2 == 0 && darkness > 0.65;
        let hatch = if is_hatched { 0.55 * darkness } else { 0.06 * darkness };
        mix(paper, lead, (line + hatch).min(1.0))
    })
}

/// Renders pixel art: large squares with a reduced number of colours.
fn pixel_art(figure: &Layer) -> Layer {
    let block = (figure.width.max(figure.height) / 24).max(2);
    let quantised = |value: f32| (value * 4.0).round() / 4.0;
    let opaque = on(figure.clone(), WHITE);
    let centre = |position: usize, length: usize| (position / block * block + block / 2).min(length - 1);
    painted(figure, |n| {
        let (x, y) = (centre(n % figure.width, figure.width), centre(n / figure.width, figure.height));
        let at = y * figure.width + x;
        let [r, g, b, _] = opaque.pixels[at];
        if figure.pixels[at][3] < 0.5 { WHITE } else { [r, g, b].map(quantised) }
    })
}

/// Renders a neon sign: glowing tubes along the figure's lines, on a dark wall.
fn neon(figure: &Layer) -> Layer {
    let wall = [0.07, 0.04, 0.12];
    let tube = vivid(mean_colour(figure));
    let (outline, lines) = (figure.alpha().edges(), figure.brightness().edges());
    let mut core: Plane = outline;
    for (value, line) in core.values.iter_mut().zip(&lines.values) {
        *value = (2.2 * *value + 2.0 * line).min(1.0);
    }
    let glow = core.blurred(3);
    painted(figure, |n| {
        let lit = mix(wall, tube, (1.4 * glow.values[n]).min(1.0));
        mix(lit, mix(tube, WHITE, 0.55), core.values[n])
    })
}

/// Renders a postage stamp: perforated paper with a tinted field that contains the figure.
fn stamp(figure: &Layer) -> Layer {
    let (table, paper) = ([0.46, 0.40, 0.36], [0.99, 0.98, 0.95]);
    let field = mix(vivid(mean_colour(figure)), WHITE, 0.72);
    let (width, height) = (figure.width as f32, figure.height as f32);
    let side = width.min(height);
    let (tooth, border) = (side / 15.0, side * 0.07);
    let half = [side.max(width * 0.62) * 0.5 - border, side * 0.5 - border];
    let picture = painted(figure, |n| {
        let x = (n % figure.width) as f32 + 0.5 - width / 2.0;
        let y = (n / figure.width) as f32 + 0.5 - height / 2.0;
        let inside = [half[0] - x.abs(), half[1] - y.abs()];
        let nearest = inside[0].min(inside[1]);
        let along = if inside[0] < inside[1] { y } else { x };
        let hole = (along.rem_euclid(tooth) - tooth / 2.0).hypot(nearest) < tooth * 0.34;
        if nearest < 0.0 || hole {
            table
        } else if nearest < side * 0.085 {
            paper
        } else {
            field
        }
    });
    let mut picture = picture;
    picture.lay(figure, 0, 0);
    picture
}

/// Renders an eraser: the figure moulded in rubber, pink above and blue below, lit from the upper
/// left, with a shadow.
fn eraser(figure: &Layer) -> Layer {
    let (pink, blue) = ([0.95, 0.58, 0.62], [0.40, 0.58, 0.83]);
    let alpha = figure.alpha();
    let brightness = figure.brightness();
    let mut relief = alpha.blurred(3);
    for (value, light) in relief.values.iter_mut().zip(&brightness.values) {
        *value += 0.35 * light;
    }
    let relief = relief.blurred(1);
    let [_, top, _, bottom] = figure.bounds().unwrap_or([0, 0, figure.width, figure.height]);
    let seam = top as f32 + 0.62 * (bottom - top) as f32;
    let body = |n: usize| {
        let (x, y) = (n % figure.width, n / figure.width);
        let [across, down] = relief.slope(x as i32, y as i32);
        let light = (3.2 * (across + down)).clamp(-0.5, 0.5);
        let is_blue = y as f32 > seam + (x as f32 - figure.width as f32 / 2.0) * 0.18;
        let rubber = if is_blue { blue } else { pink };
        if light > 0.0 { mix(rubber, WHITE, 0.9 * light) } else { mix(rubber, BLACK, -0.9 * light) }
    };
    let shadow = alpha.blurred(2);
    let mut picture = Layer::filled(figure.width, figure.height, WHITE);
    let mut dark = Layer::filled(figure.width, figure.height, BLACK).within(&shadow);
    dark.pixels.iter_mut().for_each(|pixel| *pixel = pixel.map(|value| value * 0.35));
    picture.lay(&dark, 2, 3);
    picture.lay(&painted(figure, body).within(&alpha), 0, 0);
    picture
}

/// Creates an opaque picture of the figure's size. `colour` returns the colour of the pixel with a
/// given index.
fn painted(figure: &Layer, colour: impl Fn(usize) -> Rgb) -> Layer {
    let pixel = |n: usize| {
        let [r, g, b] = colour(n);
        [r, g, b, 1.0]
    };
    Layer { pixels: (0..figure.pixels.len()).map(pixel).collect(), ..*figure }
}

fn mean_colour(figure: &Layer) -> Rgb {
    let sum = figure
        .pixels
        .iter()
        .fold([0.0; 4], |sum: [f32; 4], pixel| std::array::from_fn(|c| sum[c] + pixel[c]));
    let [r, g, b, a] = sum;
    [r, g, b].map(|value| value / a.max(1e-3))
}

/// Returns the hue of a colour at full saturation. Grey becomes the blue of a typical neon tube.
fn vivid(colour: Rgb) -> Rgb {
    let (low, high) = extremes(colour);
    match high - low < 0.08 {
        true => [0.25, 0.65, 1.0],
        false => colour.map(|value| 0.12 + 0.88 * (value - low) / (high - low)),
    }
}

fn extremes(colour: Rgb) -> (f32, f32) {
    (colour.iter().copied().fold(f32::MAX, f32::min), colour.iter().copied().fold(f32::MIN, f32::max))
}

/// Returns the RGB value of `colour` at full strength.
pub(super) fn pure(colour: Colour) -> Rgb {
    match colour {
        Colour::Red => [0.86, 0.12, 0.14],
        Colour::Orange => [0.96, 0.53, 0.09],
        Colour::Yellow => [0.98, 0.84, 0.14],
        Colour::Green => [0.22, 0.64, 0.25],
        Colour::Blue => [0.16, 0.42, 0.86],
        Colour::Purple => [0.53, 0.24, 0.72],
        Colour::Pink => [0.97, 0.52, 0.74],
        Colour::Brown => [0.49, 0.31, 0.18],
    }
}

/// Recolours the figure. Parts that were darker or lighter than its mean stay darker or lighter.
pub(super) fn tinted(figure: Layer, colour: Colour) -> Layer {
    let target = pure(colour);
    let middle = luma(mean_colour(&figure));
    figure.recoloured(|old| {
        let offset = luma(old) - middle;
        if offset > 0.0 {
            mix(target, WHITE, (offset / (1.0 - middle).max(0.05)).min(1.0) * 0.75)
        } else {
            mix(target, BLACK, (-offset / middle.max(0.05)).min(1.0) * 0.75)
        }
    })
}

/// Returns the colour of a named background. It is lighter than the colour itself, so that things
/// stand out.
pub(super) fn backdrop(colour: Colour) -> Rgb {
    mix(pure(colour), WHITE, 0.35)
}
