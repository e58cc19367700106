//! Chinese captions of scenes.

use super::scene::{Background, Colour, Content, Extra, Look, Operation, Relation, Rendition};
use super::words::chinese_number;
use super::world::{Kind, Thing, World};
use crate::sources::emoji::style::Style;

/// Returns all phrasings of the content, the canonical one first. The caller adds style and
/// background.
pub(super) fn phrasings(world: &World, content: &Content) -> Vec<String> {
    let thing = |index: usize| &world.things[index];
    match *content {
        Content::One { thing: index, look } => one(thing(index), look),
        Content::Several { thing: index, count } => {
            let (n, name, each) = (chinese_number(count), &thing(index).chinese, classifier(thing(index)));
            vec![format!("{n}{each}{name}"), format!("{n}{each}{name}的图片")]
        }
        Content::Rendered { thing: index, rendition } => rendered(thing(index), rendition),
        Content::Two { first, second, relation } => two(thing(first), thing(second), relation),
        Content::MadeOf { whole, part } => {
            let (a, part) = (counted(thing(whole)), &thing(part).chinese);
            vec![format!("{a}，由{part}组成"), format!("用{part}做成的{}", thing(whole).chinese)]
        }
        Content::ShapedLike { surface, shape } => {
            let (name, shape) = (&thing(surface).chinese, &thing(shape).chinese);
            vec![format!("{shape}形状的{name}"), format!("一个像{shape}的{name}")]
        }
        Content::Dressed { thing: index, ref extras, held } => dressed(thing(index), extras, held.map(thing)),
        Content::Panels { thing: index, operation } => panels(thing(index), operation),
    }
}

/// Returns the classifier of a thing: 只 for animals, 个 for everything else.
fn classifier(thing: &Thing) -> &'static str {
    match thing.kind {
        Kind::Animal => "只",
        Kind::Face | Kind::Plant | Kind::Produce | Kind::Food | Kind::Place | Kind::Object => "个",
    }
}

/// Returns the name with "one" and its classifier: "一只猫".
fn counted(thing: &Thing) -> String {
    format!("一{}{}", classifier(thing), thing.chinese)
}

fn one(thing: &Thing, look: Look) -> Vec<String> {
    let (name, a, each) = (&thing.chinese, counted(thing), classifier(thing));
    match look {
        Look::Plain => vec![a.clone(), name.clone(), format!("{name}的图片"), format!("一张{name}的画")],
        Look::Coloured(colour) => {
            let colour = colour_name(colour);
            vec![format!("一{each}{colour}的{name}"), format!("{colour}的{name}")]
        }
        Look::Tiny => vec![format!("一{each}很小的{name}"), format!("很小的{name}")],
        Look::Huge => vec![format!("一{each}巨大的{name}"), format!("巨大的{name}")],
        Look::UpsideDown => vec![format!("一{each}倒立的{name}"), format!("上下颠倒的{name}")],
    }
}

fn rendered(thing: &Thing, rendition: Rendition) -> Vec<String> {
    let (name, a) = (&thing.chinese, counted(thing));
    match rendition {
        Rendition::XRay => vec![format!("{a}的X光片"), format!("{name}的X光片")],
        Rendition::Sketch => vec![format!("{a}的铅笔素描"), format!("{name}的素描")],
        Rendition::Silhouette => vec![format!("{a}的剪影"), format!("{name}剪影")],
        Rendition::BlackAndWhite => vec![format!("{a}的黑白图片"), format!("黑白的{name}")],
        Rendition::PixelArt => vec![format!("{a}的像素画"), format!("像素风的{name}")],
        Rendition::Neon => vec![format!("{a}的霓虹灯"), format!("{name}霓虹灯")],
        Rendition::Stamp => vec![format!("一张{name}邮票"), format!("{name}邮票")],
        Rendition::Eraser => vec![format!("{name}橡皮"), format!("{name}形状的橡皮")],
    }
}

fn two(first: &Thing, second: &Thing, relation: Relation) -> Vec<String> {
    let (a, b) = (counted(first), counted(second));
    match relation {
        Relation::SideBySide => vec![format!("{a}和{b}"), format!("{a}在{b}旁边")],
        Relation::LeftOf => vec![format!("{a}在{b}的左边"), format!("左边是{a}，右边是{b}")],
        Relation::RightOf => vec![format!("{a}在{b}的右边"), format!("右边是{a}，左边是{b}")],
        Relation::Above => vec![format!("{a}在{b}的上面"), format!("上面是{a}，下面是{b}")],
        Relation::Below => vec![format!("{a}在{b}的下面"), format!("下面是{a}，上面是{b}")],
        Relation::InFrontOf => vec![format!("{a}在{b}的前面"), format!("{b}在{a}的后面")],
    }
}

fn dressed(thing: &Thing, extras: &[Extra], held: Option<&Thing>) -> Vec<String> {
    let is_baby = extras.contains(&Extra::Baby);
    let a = if is_baby { format!("一个{}宝宝", thing.chinese) } else { counted(thing) };
    let mut parts: Vec<String> =
        extras.iter().filter_map(|&extra| garment(extra)).map(str::to_string).collect();
    parts.extend(held.map(|held| format!("拿着{}", counted(held))));
    parts.extend(extras.contains(&Extra::WalkingDog).then(|| "在遛狗".to_string()));
    match parts.is_empty() {
        true => vec![a],
        false => vec![format!("{a}{}", parts.join("，")), format!("{a}，{}", parts.join("，"))],
    }
}

fn garment(extra: Extra) -> Option<&'static str> {
    match extra {
        Extra::Tutu => Some("穿着芭蕾舞裙"),
        Extra::Crown => Some("戴着皇冠"),
        Extra::Hat => Some("戴着礼帽"),
        Extra::Sunglasses => Some("戴着墨镜"),
        Extra::Scarf => Some("围着围巾"),
        Extra::Sweater => Some("穿着圣诞毛衣"),
        Extra::Baby | Extra::WalkingDog => None,
    }
}

fn panels(thing: &Thing, operation: Operation) -> Vec<String> {
    let name = &thing.chinese;
    let how = match operation {
        Operation::Sketch => "素描".to_string(),
        Operation::XRay => "X光片".to_string(),
        Operation::Silhouette => "剪影".to_string(),
        Operation::UpsideDown => "倒立".to_string(),
        Operation::BlackAndWhite => "黑白".to_string(),
        Operation::Coloured(colour) => colour_name(colour).to_string(),
        Operation::Sunglasses => "戴墨镜".to_string(),
        Operation::Stamp => "邮票".to_string(),
    };
    vec![format!("上面是{name}，下面是同一个{name}的{how}版"), format!("同一个{name}，下面是{how}版")]
}

fn colour_name(colour: Colour) -> &'static str {
    match colour {
        Colour::Red => "红色",
        Colour::Orange => "橙色",
        Colour::Yellow => "黄色",
        Colour::Green => "绿色",
        Colour::Blue => "蓝色",
        Colour::Purple => "紫色",
        Colour::Pink => "粉色",
        Colour::Brown => "棕色",
    }
}

/// Returns the phrase for a background, "，蓝色背景". It is empty for white.
pub(super) fn background(background: Background) -> String {
    match background {
        Background::White => String::new(),
        Background::Named(colour) => format!("，{}背景", colour_name(colour)),
    }
}

/// Returns the phrase for a style, "，扁平风格".
pub(super) fn style(style: Style) -> String {
    let name = match style {
        Style::Flat => "扁平",
        Style::Glossy => "光泽",
        Style::Noto | Style::Twemoji | Style::EmojiOne | Style::Firefox => style.name(),
    };
    format!("，{name}风格")
}
