//! The picture, put together from the tiles that came back, each tinted by the site that computed it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use intergrid_proto::Refusal;

use super::tile::{HEIGHT, WIDTH, grid};
use crate::stop::local;

/// Where nothing was drawn, and where a tile is darkest.
const NIGHT: [u8; 3] = [10, 12, 22];
/// A tile's right and lower edge keep this much of their light, in percent.
const EDGE_LIGHT: u32 = 72;
/// Larger tiles are not ours.
const TILE_BYTES_MAX: usize = 1 << 20;

/// A colour as red, green, blue.
pub type Colour = [u8; 3];

/// The sites' colours.
const TINTS: [(&str, Colour); 3] = [("campus", [64, 132, 246]), ("partner", [42, 187, 142]), ("burst", [246, 138, 60])];
/// Of a site that is not of the demo.
const OTHER: Colour = [150, 150, 160];

/// A site's colour.
pub fn tint(site: &str) -> Colour {
    TINTS.iter().find(|(name, _)| *name == site).map_or(OTHER, |(_, colour)| *colour)
}

/// A tile's brightness, row by row.
pub fn read_tile(path: &Path) -> Result<Vec<u8>, Refusal> {
    let bad = |e: &dyn std::fmt::Display| local(format!("{} is not a tile: {e}", path.display()));
    let file = File::open(path).map_err(|e| bad(&e))?;
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_limits(png::Limits { bytes: TILE_BYTES_MAX });
    let mut reader = decoder.read_info().map_err(|e| bad(&e))?;
    let mut pixels = vec![0; reader.output_buffer_size().filter(|n| *n <= TILE_BYTES_MAX).ok_or_else(|| bad(&"too large"))?];
    let info = reader.next_frame(&mut pixels).map_err(|e| bad(&e))?;
    let ours = info.width == WIDTH && info.height == HEIGHT && info.color_type == png::ColorType::Grayscale;
    if ours { Ok(pixels) } else { Err(bad(&"another size or kind of picture")) }
}

/// The whole picture, red, green, blue, row by row, with its size. A tile that is None stays dark.
pub fn assemble(tiles: &[Option<(Vec<u8>, Colour)>]) -> (u32, u32, Vec<u8>) {
    let (columns, rows) = grid(tiles.len() as u32);
    let (width, height) = (columns * WIDTH, rows * HEIGHT);
    let mut picture = NIGHT.repeat((width * height) as usize);
    for (i, tile) in tiles.iter().enumerate() {
        let Some((pixels, tint)) = tile else { continue };
        let (left, top) = ((i as u32 % columns) * WIDTH, (i as u32 / columns) * HEIGHT);
        for (p, light) in pixels.iter().enumerate().take((WIDTH * HEIGHT) as usize) {
            let (x, y) = (p as u32 % WIDTH, p as u32 / WIDTH);
            let edge = x == WIDTH - 1 || y == HEIGHT - 1;
            let light = if edge { u32::from(*light) * EDGE_LIGHT / 100 } else { u32::from(*light) };
            let at = (((top + y) * width + left + x) * 3) as usize;
            picture[at..at + 3].copy_from_slice(&shade(*tint, light));
        }
    }
    (width, height, picture)
}

/// From night over the tint to nearly white.
fn shade(tint: Colour, light: u32) -> Colour {
    let mix = |from: u8, to: u8, part: u32, of: u32| ((u32::from(from) * (of - part) + u32::from(to) * part) / of) as u8;
    std::array::from_fn(|c| match light {
        0..160 => mix(NIGHT[c], tint[c], light, 160),
        _ => mix(tint[c], 248, light.min(255) - 160, 120),
    })
}

/// Write it as PNG.
pub fn write(path: &Path, width: u32, height: u32, picture: &[u8]) -> Result<(), Refusal> {
    let bad =
        |e: &dyn std::fmt::Display| local(format!("{} can't be written: {e}", path.display())).remedy("give --dir, or run it where you may write");
    let mut file = BufWriter::new(File::create(path).map_err(|e| bad(&e))?);
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| bad(&e))?;
    writer.write_image_data(picture).map_err(|e| bad(&e))?;
    writer.finish().map_err(|e| bad(&e))?;
    file.flush().map_err(|e| bad(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::TileArgs;
    use crate::demo::tile;

    #[test]
    fn tiles_go_to_their_places_in_their_tints() {
        let bright = vec![159; (WIDTH * HEIGHT) as usize];
        let tiles = vec![Some((bright.clone(), tint("campus"))), None, Some((bright, tint("burst")))];
        let (width, height, picture) = assemble(&tiles);
        assert_eq!((2 * WIDTH, 2 * HEIGHT, (width * height * 3) as usize), (width, height, picture.len()));
        let at = |x: u32, y: u32| &picture[((y * width + x) * 3) as usize..][..3];
        assert_eq!((NIGHT.as_slice(), NIGHT.as_slice()), (at(WIDTH + 5, 5), at(WIDTH + 5, HEIGHT + 5)));
        let (blue, orange) = (at(5, 5), at(5, HEIGHT + 5));
        assert!(blue[2] > blue[0] && orange[0] > orange[2], "{blue:?} {orange:?}");
        assert!(at(WIDTH - 1, 5)[2] < blue[2], "a tile has an edge");
    }

    #[test]
    fn a_tile_is_read_as_it_was_rendered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tile-3.png");
        tile::run(&TileArgs { tile: 3, of: 64, out: path.clone() }).unwrap();
        assert_eq!(tile::render(3, 64), read_tile(&path).unwrap());
        std::fs::write(&path, b"not a picture").unwrap();
        assert!(read_tile(&path).unwrap_err().message.contains("is not a tile"));
        let (width, height, picture) = assemble(&[None]);
        write(&path, width, height, &picture).unwrap();
        assert!(read_tile(&path).unwrap_err().message.contains("another"));
    }
}
