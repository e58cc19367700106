//! `tessera eval`: a table for people, JSON for programs.

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use tessera_data::{Dataset, Sample};
use tessera_eval::{Conditioning, Figure, Recon, conditioning, curves, recon};
use tessera_model::Tessera;
use tessera_train::{held_out_codes, held_out_pictures};

use super::model_file;
use crate::args::{Eval, EvalArgs};

pub fn run(eval: Eval) -> Result<()> {
    match eval {
        Eval::Recon(args) => {
            let file = model_file(args.model.as_deref())?;
            let config = file.config.dvae.as_ref().context("the file holds no dVAE")?;
            let device = Device::default();
            let pictures = held_out_pictures(&held_out(&args)?, config)?;
            let report = recon(&file.dvae(&device)?, config, &pictures, &device);
            print(&args, &report, print_recon)
        }
        Eval::Conditioning(args) => {
            let file = model_file(args.model.as_deref())?;
            let config = file.config.dvae.as_ref().context("the file holds no dVAE")?;
            let tessera = Tessera::new(&file, &Device::default())?;
            let items = held_out_codes(&held_out(&args)?, &tessera.dvae, config, &tessera.bpe)?;
            let report = conditioning(&tessera.prior, &items)?;
            print(&args, &report, print_conditioning)
        }
        Eval::Curves { run, metrics, out } => {
            std::fs::write(&out, curves(&run, &metrics)?)
                .with_context(|| format!("cannot write {}; choose another --out", out.display()))?;
            println!("{}", out.display());
            Ok(())
        }
    }
}

fn held_out(args: &EvalArgs) -> Result<Vec<Sample>> {
    let dataset = Dataset::open(&args.data)?;
    match dataset.val.is_empty() {
        true => bail!("{} holds out no pictures; make the data set with --holdout 5", args.data.display()),
        false => Ok(dataset.val),
    }
}

fn print<R: serde::Serialize>(args: &EvalArgs, report: &R, table: fn(&R)) -> Result<()> {
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(report)?),
        false => table(report),
    }
    Ok(())
}

fn print_recon(r: &Recon) {
    println!("reconstruction of {} held-out pictures", r.pictures);
    println!("  PSNR             {:8.2} ± {:.2} dB", r.psnr_db, r.psnr_db_se);
    println!("  ELBO             {:8.4} nats a value (hard tokens, β = 1)", r.elbo_nats_per_value);
    println!("  likelihood       {:8.4} nats a value", -r.nll_nats_per_value);
    println!("  KL to uniform    {:8.3} nats a token", r.kl_nats_per_token);
    println!("  codes in use     {:8}", r.codes_used);
    println!("  perplexity       {:8.1}", r.perplexity);
}

fn print_conditioning(c: &Conditioning) {
    let row = |name: &str, loss: Figure, gap: Option<Figure>| {
        let gap = gap.map_or(String::new(), |gap| format!("{:+.4} ± {:.4}", gap.mean, gap.se));
        println!("  {name:26} {:.4} ± {:.4}   {gap}", loss.mean, loss.se);
    };
    println!("image loss of {} held-out pictures, nats a token, and what wrong words add", c.pictures);
    row("true caption", c.true_caption, None);
    row("another of the same style", c.loss.same_style, Some(c.gap.same_style));
    row("another of any style", c.loss.shuffled, Some(c.gap.shuffled));
    row("no caption", c.loss.none, Some(c.gap.none));
}
