//! The demo's payload: one tile of a picture, as a task of an array renders it. Deterministic, pure computing, a few hundred milliseconds.
//!
//! It knows nothing of a grid: it is started with its index and writes one file.

use std::fs::File;
use std::io::{BufWriter, Write};

use intergrid_proto::Refusal;

use crate::args::TileArgs;
use crate::stop::{Ending, Result, local};

/// Pixels of a tile.
pub const WIDTH: u32 = 160;
/// See [`WIDTH`].
pub const HEIGHT: u32 = 100;
/// Points of a pixel, in each direction. An unoptimised build is some ten times slower, and takes fewer.
const SAMPLES: u32 = if cfg!(debug_assertions) { 1 } else { 4 };
/// A point that stays this long is taken to stay for ever.
const STEPS_MAX: u32 = 2_000;
/// What the whole picture shows.
const CENTRE: (f64, f64) = (-0.745_5, 0.112_35);
const VIEW_WIDTH: f64 = 0.006_5;

/// Columns and rows of this many tiles.
pub fn grid(tiles: u32) -> (u32, u32) {
    let mut columns = 1;
    while columns * columns < tiles {
        columns += 1;
    }
    (columns, tiles.div_ceil(columns.max(1)))
}

/// Render one tile into a file.
pub fn run(args: &TileArgs) -> Result<Ending> {
    if args.of == 0 || args.tile >= args.of {
        return Err(Refusal::invalid(format!("there is no tile {} of {}", args.tile, args.of)).into());
    }
    let bad = |e: &dyn std::fmt::Display| local(format!("{} can't be written: {e}", args.out.display()));
    let mut file = BufWriter::new(File::create(&args.out).map_err(|e| bad(&e))?);
    let mut encoder = png::Encoder::new(&mut file, WIDTH, HEIGHT);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| bad(&e))?;
    writer.write_image_data(&render(args.tile, args.of)).map_err(|e| bad(&e))?;
    writer.finish().map_err(|e| bad(&e))?;
    file.flush().map_err(|e| bad(&e))?;
    Ok(Ending::Well)
}

/// Its brightness, row by row.
pub fn render(tile: u32, of: u32) -> Vec<u8> {
    let (columns, rows) = grid(of);
    let (left, top) = ((tile % columns) * WIDTH, (tile / columns) * HEIGHT);
    let (wide, high) = (f64::from(columns * WIDTH), f64::from(rows * HEIGHT));
    let scale = VIEW_WIDTH / wide;
    let point = |pixel: u32, sample: u32| f64::from(pixel) + (f64::from(sample) + 0.5) / f64::from(SAMPLES);
    let mut out = Vec::with_capacity((WIDTH * HEIGHT) as usize);
    for y in top..top + HEIGHT {
        for x in left..left + WIDTH {
            let samples = (0..SAMPLES).flat_map(|v| (0..SAMPLES).map(move |u| (u, v))).map(|(u, v)| {
                let re = CENTRE.0 + (point(x, u) - wide / 2.0) * scale;
                let im = CENTRE.1 + (point(y, v) - high / 2.0) * scale;
                brightness(re, im)
            });
            let mean = samples.sum::<f64>() / f64::from(SAMPLES * SAMPLES);
            out.push((mean.clamp(0.0, 1.0) * 255.0).round() as u8);
        }
    }
    out
}

/// 0 to 1: how soon this point of the Mandelbrot set's plane leaves, in smooth bands.
fn brightness(re: f64, im: f64) -> f64 {
    let (mut x, mut y) = (0.0f64, 0.0f64);
    for step in 0..STEPS_MAX {
        let (xx, yy) = (x * x, y * y);
        if xx + yy > 256.0 {
            let smooth = f64::from(step) + 1.0 - ((xx + yy).ln() / 2.0 / std::f64::consts::LN_2).log2();
            let band = (smooth.max(1.0).ln() * 4.2).sin() * 0.5 + 0.5;
            return 0.2 + 0.8 * band;
        }
        y = 2.0 * x * y + im;
        x = xx - yy + re;
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_has_its_place() {
        assert_eq!([(8, 8), (1, 1), (9, 8), (10, 10)], [grid(64), grid(1), grid(65), grid(100)]);
        for tiles in 1..300 {
            let (columns, rows) = grid(tiles);
            assert!(columns * rows >= tiles && columns * (rows - 1) < tiles, "{tiles}");
        }
    }

    #[test]
    fn a_tile_is_always_the_same() {
        let tile = render(27, 64);
        assert_eq!((WIDTH * HEIGHT) as usize, tile.len());
        assert_eq!(tile, render(27, 64));
        assert_ne!(tile, render(28, 64));
        assert!(tile.iter().max() > Some(&100));
    }

    #[test]
    fn a_tile_that_is_not_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(&TileArgs { tile: 64, of: 64, out: dir.path().join("x") }).is_err());
        assert!(run(&TileArgs { tile: 0, of: 64, out: dir.path().join("no/x") }).is_err());
    }
}
