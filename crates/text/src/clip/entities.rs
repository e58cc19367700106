//! Resolves HTML character references as Python's `html.unescape` and ftfy do.
//!
//! HTML 5 has 2,231 names, most of them for mathematical signs that captions do not contain. This
//! file supports the 252 names of HTML 4, `apos`, and the names of ASCII signs.

/// The names of U+00A0 to U+00FF in order. These and a few of [`ASCII`] are also valid without a
/// `;`.
const LATIN_1: &str = "nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn \
    sup2 sup3 acute micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc Atilde \
    Auml Aring AElig Ccedil Egrave Eacute Ecirc Euml Igrave Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde \
    Ouml times Oslash Ugrave Uacute Ucirc Uuml Yacute THORN szlig agrave aacute acirc atilde auml aring aelig ccedil \
    egrave eacute ecirc euml igrave iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave \
    uacute ucirc uuml yacute thorn yuml";

/// ASCII signs: each entry is a sign followed by one of its names.
const ASCII: &str = "&amp &AMP <lt <LT >gt >GT \"quot \"QUOT 'apos *ast *midast \\bsol :colon ,comma @commat \
    `grave `DiacriticalGrave $dollar =equals !excl ^Hat {lbrace {lcub [lbrack [lsqb _lowbar _UnderBar (lpar #num \
    %percnt .period +plus ?quest }rbrace }rcub ]rbrack ]rsqb )rpar ;semi /sol |verbar |vert |VerticalLine \nNewLine \
    \tTab";

/// The remaining names of HTML 4 and the capital spellings that HTML 5 added. Each entry is a sign
/// followed by its name.
const OTHER: &str = "©COPY ®REG ™TRADE ŒOElig œoelig ŠScaron šscaron ŸYuml ƒfnof ˆcirc ˜tilde ΑAlpha ΒBeta ΓGamma ΔDelta \
    ΕEpsilon ΖZeta ΗEta ΘTheta ΙIota ΚKappa ΛLambda ΜMu ΝNu ΞXi ΟOmicron ΠPi ΡRho ΣSigma ΤTau ΥUpsilon ΦPhi ΧChi ΨPsi \
    ΩOmega αalpha βbeta γgamma δdelta εepsilon ζzeta ηeta θtheta ιiota κkappa λlambda μmu νnu ξxi οomicron πpi ρrho \
    ςsigmaf σsigma τtau υupsilon φphi χchi ψpsi ωomega ϑthetasym ϒupsih ϖpiv \u{2002}ensp \u{2003}emsp \u{2009}thinsp \
    \u{200c}zwnj \u{200d}zwj \u{200e}lrm \u{200f}rlm \u{2013}ndash \u{2014}mdash \u{2018}lsquo \u{2019}rsquo \
    \u{201a}sbquo \u{201c}ldquo \u{201d}rdquo \u{201e}bdquo †dagger ‡Dagger •bull …hellip ‰permil ′prime ″Prime \
    ‹lsaquo ›rsaquo ‾oline \u{2044}frasl €euro ℑimage ℘weierp ℜreal ™trade ℵalefsym ←larr ↑uarr →rarr ↓darr ↔harr \
    ↵crarr ⇐lArr ⇑uArr ⇒rArr ⇓dArr ⇔hArr ∀forall ∂part ∃exist ∅empty ∇nabla ∈isin ∉notin ∋ni ∏prod ∑sum \u{2212}minus \
    ∗lowast √radic ∝prop ∞infin ∠ang ∧and ∨or ∩cap ∪cup ∫int ∴there4 ∼sim ≅cong ≈asymp ≠ne ≡equiv ≤le ≥ge ⊂sub ⊃sup \
    ⊄nsub ⊆sube ⊇supe ⊕oplus ⊗otimes ⊥perp ⋅sdot ⌈lceil ⌉rceil ⌊lfloor ⌋rfloor ⟨lang ⟩rang ◊loz ♠spades ♣clubs ♥hearts \
    ♦diams";

/// The characters of Windows-1252 at U+0080 to U+009F. Five of these positions are unused.
const WINDOWS_1252: &str = "€\u{81}\u{201a}ƒ\u{201e}…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}\u{2018}\u{2019}\u{201c}\u{201d}•\u{2013}\u{2014}˜™š›œ\u{9d}žŸ";

/// Replaces a C1 control by the character that Windows-1252 has in its place. Other characters are
/// returned unchanged.
pub(super) fn windows_1252(c: char) -> char {
    match c {
        '\u{80}'..='\u{9f}' => WINDOWS_1252.chars().nth(c as usize - 0x80).unwrap_or(c),
        c => c,
    }
}

/// Resolves references as Python's `html.unescape` does: numbers, and names with or without `;`, of
/// which the longest match is taken.
pub(super) fn unescape(text: &str) -> String {
    replace(text, |reference| number(reference).or_else(|| longest_name(reference)))
}

/// Resolves references as ftfy does: only those that end in `;`, and names also in capitals.
pub(super) fn unescape_terminated(text: &str) -> String {
    replace(text, |reference| {
        let end = reference.find(';')?;
        let name = &reference[..end];
        let word = name.strip_prefix('#').unwrap_or(name);
        if !(1..=24).contains(&word.len()) || !word.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let resolved = if name.starts_with('#') {
            // ftfy rejects a result that still ends in `;`, and so also a reference to `;` itself.
            number(reference).filter(|(text, len)| *len == end + 1 && text != ";").map(|(text, _)| text)
        } else {
            named(name).map(String::from).or_else(|| in_capitals(name))
        };
        resolved.map(|text| (text, end + 1))
    })
}

/// Replaces all references. `resolve` gets the text after a `&` and returns the replacement and the
/// number of bytes of that text that it replaces.
fn replace(text: &str, resolve: impl Fn(&str) -> Option<(String, usize)>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        result.push_str(&rest[..at]);
        let reference = &rest[at + 1..];
        let (resolved, len) = resolve(reference).unwrap_or(("&".to_owned(), 0));
        result.push_str(&resolved);
        rest = &reference[len..];
    }
    result + rest
}

/// Resolves a numeric reference such as `#8217;` or `#x2019`. Invalid characters become the empty
/// string or U+FFFD.
fn number(reference: &str) -> Option<(String, usize)> {
    let digits = reference.strip_prefix('#')?;
    let (digits, base) = match digits.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (digits, 10),
    };
    let after = digits.trim_start_matches(|c: char| c.is_digit(base));
    let digits = &digits[..digits.len() - after.len()];
    if digits.is_empty() {
        return None;
    }
    // A number that does not fit in 32 bits is not a valid character either.
    let code = u32::from_str_radix(digits, base).unwrap_or(u32::MAX);
    let len = reference.len() - after.len() + usize::from(after.starts_with(';'));
    let c = char::from_u32(code).filter(|c| *c != '\0').unwrap_or('\u{fffd}');
    let is_invalid = matches!(c, '\u{1}'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{fdd0}'..='\u{fdef}')
        || code & 0xfffe == 0xfffe && code < 0x11_0000;
    Some((if is_invalid { String::new() } else { windows_1252(c).to_string() }, len))
}

/// Resolves the longest name at the start of `reference`: any name before a `;`, otherwise only
/// names that are valid without a `;`.
fn longest_name(reference: &str) -> Option<(String, usize)> {
    let is_end = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let end = reference.char_indices().take(33).find(|(_, c)| is_end(*c));
    let end = end
        .map_or_else(|| reference.char_indices().nth(32).map_or(reference.len(), |(at, _)| at), |(at, _)| at);
    let name = &reference[..end];
    if reference[end..].starts_with(';')
        && let Some(c) = named(name)
    {
        return Some((c.to_string(), end + 1));
    }
    let prefixes = (2..=end).rev().filter_map(|len| name.get(..len));
    let mut found = prefixes.filter(|name| stands_alone(name));
    found.next().and_then(|name| Some((named(name)?.to_string(), name.len())))
}

/// Resolves the name of a small letter that is written in capitals to the capital letter, as ftfy
/// does.
fn in_capitals(name: &str) -> Option<String> {
    let small = name.to_ascii_lowercase();
    if name != name.to_ascii_uppercase() {
        return None;
    }
    Some(named(&small)?.to_uppercase().to_string())
}

fn stands_alone(name: &str) -> bool {
    let short = ["amp", "AMP", "lt", "LT", "gt", "GT", "quot", "QUOT", "COPY", "REG"];
    short.contains(&name) || LATIN_1.split(' ').any(|latin| latin == name)
}

fn named(name: &str) -> Option<char> {
    if let Some(at) = LATIN_1.split(' ').position(|latin| latin == name) {
        return char::from_u32(0xa0 + at as u32);
    }
    let sign_of = |entry: &str| entry.chars().next().filter(|sign| entry[sign.len_utf8()..] == *name);
    ASCII.split(' ').chain(OTHER.split(' ')).find_map(sign_of)
}
