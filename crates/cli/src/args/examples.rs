//! The examples at the end of each command's help.

use clap::Command;

/// The examples of each command, by its name below `tessera`.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "draw",
        &[
            "tessera draw \"a red apple\"",
            "tessera draw \"a cat\" \"a dog\" --best 4 --of 32 --seed 7 --out pets.png",
            "tessera draw \"a cat with a hat\" --image cat.png --keep-rows 6",
        ],
    ),
    ("serve", &["tessera serve", "tessera serve --bind 0.0.0.0:8080 --api-key-file keys.txt"]),
    ("train", &["tessera train pictures/ --run run --minutes 15"]),
    ("train bpe", &["tessera train bpe --config emoji --data data --run bpe"]),
    ("train dvae", &["tessera train dvae --config emoji --data data --run dvae --steps 2000"]),
    (
        "train prior",
        &[
            "tessera train prior --data codes --bpe embedded --init embedded --run prior --minutes 10",
            "tessera train prior --data codes --bpe bpe/tokenizer.json --run prior --resume",
        ],
    ),
    (
        "train rerank",
        &["tessera train rerank --data data --bpe embedded --dvae embedded --init embedded --run rerank"],
    ),
    ("encode", &["tessera encode --data data --dvae embedded --out codes"]),
    ("data folder", &["tessera data folder pictures/ --out data --holdout 10"]),
    ("data emoji", &["tessera data emoji --packages packages --out data --size 108"]),
    ("data scenes", &["tessera data scenes --packages packages --out scenes --count 16000"]),
    (
        "pack",
        &[
            "tessera pack prior/model.tessera.safetensors --rerank rerank/rerank.tessera.safetensors --out model.tessera.safetensors",
        ],
    ),
    ("inspect", &["tessera inspect drawing.png", "tessera inspect embedded --words", "tessera inspect run"]),
    ("gallery", &["tessera gallery drawings/ --out gallery.html"]),
    ("reconstruct", &["tessera reconstruct photo.jpg --out reconstruction.png"]),
    (
        "convert run",
        &[
            "tessera convert run prior --bpe bpe/tokenizer.json --dvae dvae.tessera.safetensors --out prior.tessera.safetensors",
        ],
    ),
    (
        "convert openai-dvae",
        &["tessera convert openai-dvae encoder.pkl decoder.pkl --out dvae.tessera.safetensors"],
    ),
    (
        "convert clip",
        &[
            "tessera convert clip ViT-B-32.pt --vocab bpe_simple_vocab_16e6.txt.gz --out clip.tessera.safetensors",
        ],
    ),
    ("bench", &["tessera bench", "tessera bench gemm draw-9 --rounds 7 --json"]),
    (
        "plan",
        &[
            "tessera plan --config paper --gpus 1024 --gpu-mem 16GiB",
            "tessera plan --config paper --simulate --plot efficiency.svg",
        ],
    ),
    ("completions", &["tessera completions bash > ~/.local/share/bash-completion/completions/tessera"]),
    ("eval recon", &["tessera eval recon --data data"]),
    ("eval conditioning", &["tessera eval conditioning --data data --model model.tessera.safetensors"]),
    ("eval drawing", &["tessera eval drawing --data data --sheet sheet.png"]),
    ("eval retrieval", &["tessera eval retrieval --data data"]),
    ("eval fid", &["tessera eval fid real/ drawn/ --inception inception.pth --work features/"]),
    ("eval kid", &["tessera eval kid real/ drawn/"]),
    ("eval cmmd", &["tessera eval cmmd real/ drawn/ --rerank clip.tessera.safetensors"]),
    ("eval precision-recall", &["tessera eval precision-recall real/ drawn/"]),
    ("eval is", &["tessera eval is drawn/ --inception inception.pth"]),
    ("eval clip-score", &["tessera eval clip-score drawn/ --rerank clip.tessera.safetensors"]),
    ("eval blur", &["tessera eval blur real/ drawn/ --inception inception.pth"]),
    ("eval overlap", &["tessera eval overlap --data data"]),
    (
        "eval rerank-curve",
        &["tessera eval rerank-curve --data data --drawings drawn --judge judge.tessera.safetensors"],
    ),
    (
        "eval coco",
        &["tessera eval coco coco/ --drawings drawn --judge clip.tessera.safetensors --captions 1000"],
    ),
    ("eval cub", &["tessera eval cub CUB_200_2011/ --drawings drawn --judge clip.tessera.safetensors"]),
    ("eval zero-shot", &["tessera eval zero-shot --packages packages --judge judge.tessera.safetensors"]),
    ("eval human page", &["tessera eval human page ours/ theirs/ --tasks 100 --out compare.html"]),
    ("eval human votes", &["tessera eval human votes votes-1.csv votes-2.csv --names ours theirs"]),
    (
        "eval report",
        &[
            "tessera eval report --data data --drawings drawn",
            "tessera eval report --data data --drawings drawn --judge judge.tessera.safetensors",
        ],
    ),
    ("eval curves", &["tessera eval curves run-1 run-2 --out curves.svg"]),
];

/// Adds the examples to the help of each command.
pub fn with_examples(command: Command) -> Command {
    EXAMPLES.iter().fold(command, |command, (path, lines)| {
        let names: Vec<&str> = path.split(' ').collect();
        at(command, &names, &|command| command.after_help(heading(lines)))
    })
}

/// Applies `change` to the subcommand at the path `names`.
fn at(command: Command, names: &[&str], change: &dyn Fn(Command) -> Command) -> Command {
    match names.split_first() {
        Some((name, rest)) => command.mut_subcommand(name, |command| at(command, rest, change)),
        None => change(command),
    }
}

fn heading(lines: &[&str]) -> String {
    let title = if lines.len() == 1 { "Example:" } else { "Examples:" };
    lines.iter().fold(title.to_string(), |text, line| text + "\n  " + line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    /// The paths of all commands that have no subcommands, or work without one.
    fn leaves(command: &Command, path: &str) -> Vec<String> {
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        let below = shown.filter(|command| command.get_name() != "help").flat_map(|command| {
            let path = format!("{path} {}", command.get_name());
            leaves(command, path.trim())
        });
        let itself = (!command.has_subcommands()).then(|| path.to_string());
        itself.into_iter().chain(below).collect()
    }

    /// The words of a command line. Quotes keep words together; what follows `>` is the shell's.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" > ").next().unwrap_or(line);
        let parts = line.split('"').enumerate();
        parts
            .flat_map(|(i, part)| match i % 2 {
                0 => part.split_whitespace().map(str::to_string).collect(),
                _ => vec![part.to_string()],
            })
            .collect()
    }

    #[test]
    fn every_command_has_an_example() {
        for path in leaves(&args::command(), "") {
            assert!(EXAMPLES.iter().any(|(known, _)| *known == path), "`tessera {path}` has no example");
        }
    }

    #[test]
    fn examples_parse_as_their_command() {
        for (path, lines) in EXAMPLES {
            for line in *lines {
                assert!(line.starts_with(&format!("tessera {path}")), "{line} is no example of {path}");
                if let Err(error) = args::command().try_get_matches_from(words(line)) {
                    panic!("{line}: {error}");
                }
            }
        }
    }
}
