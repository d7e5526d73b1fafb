//! bench
use xtask::Result;
pub fn run(_seconds: Option<&str>) -> Result<()> {
    Ok(())
}
pub fn backend(_args: &[String]) -> Result<()> {
    Ok(())
}
