"""What LAPACK's factorisations, solvers and decompositions cost, as pure functions of sizes.

The direct routines have LAPACK Working Note 41's operation counts (Blackford and Dongarra, "Installation Guide for
LAPACK", appendix C), multiplications and additions apart, to the last term: a division or a root counts as a
multiplication, and of complex numbers a multiplication is 6 FLOPs and an addition 2. They are whole numbers as they
stand. Iterative ones have no count of their own; they have Golub and Van Loan's customary ones ("Matrix Computations",
4th edition) with the fraction dropped, four times that for complex numbers.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """Multiplications and additions, of real or of complex numbers."""

    multiplications: int
    additions: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.multiplications + other.multiplications, self.additions + other.additions)

    def flops(self, *, of_complex: bool = False) -> int:
        """FLOPs: one each for reals, 6 and 2 for complex numbers."""
        return 6 * self.multiplications + 2 * self.additions if of_complex else self.multiplications + self.additions


def lu(m: int, n: int) -> Work:
    """GETRF, the LU factors of m × n: about 2n³/3 for a square; those of m < n, which the note omits, counted alike."""
    long, short = max(m, n), min(m, n)
    cubic = 3 * long * short**2 - short**3
    return Work((cubic + 3 * short * (m - n) + 4 * short) // 6, (cubic - 3 * m * n + short) // 6)


def lu_solve(n: int, columns: int) -> Work:
    """GETRS, solving from the LU factors of n × n: about 2n² a column. SYTRS, from LDL factors, costs the same."""
    return Work(columns * n * n, columns * n * (n - 1))


def inverse(n: int) -> Work:
    """GETRF and GETRI, the inverse by LU: about 2n³."""
    return lu(n, n) + Work((4 * n**3 + 3 * n**2 + 5 * n) // 6, (4 * n**3 - 9 * n**2 + 5 * n) // 6)


def cholesky(n: int) -> Work:
    """POTRF: about n³/3."""
    return Work((n**3 + 3 * n**2 + 2 * n) // 6, (n**3 - n) // 6)


def cholesky_solve(n: int, columns: int) -> Work:
    """POTRS: 2n² a column."""
    return Work(columns * n * (n + 1), columns * n * (n - 1))


def cholesky_inverse(n: int) -> Work:
    """POTRI, the inverse from the factor: about 2n³/3."""
    return Work((n**3 + 3 * n**2 + 2 * n) // 3, (2 * n**3 - 3 * n**2 + n) // 6)


def ldl(n: int) -> Work:
    """SYTRF, the LDL factors of a symmetric matrix: about n³/3."""
    return Work((n**3 + 3 * n**2 + 20 * n) // 6, (n**3 - n) // 6)


def triangular_solve(n: int, columns: int, *, unit: bool = False) -> Work:
    """TRSM with a triangle of n × n: n² a column; a diagonal of ones divides nothing."""
    additions = columns * n * (n - 1) // 2
    return Work(additions if unit else columns * n * (n + 1) // 2, additions)


def qr(m: int, n: int) -> Work:
    """GEQRF, Householder's QR of m × n, the reflections left as they are: about 2mn² - 2n³/3.

    An LQ of n × m is counted as the same.
    """
    if m > n:
        cubic = 6 * m * n**2 - 2 * n**3 + 3 * n**2
        return Work((cubic + 6 * m * n + 23 * n) // 6, (cubic + 5 * n) // 6)
    cubic = 6 * n * m**2 - 2 * m**3 - 3 * m**2
    return Work((cubic + 12 * m * n + 23 * m) // 6, (cubic + 6 * m * n + 5 * m) // 6)


def householder(m: int, n: int, k: int) -> Work:
    """ORGQR, the first n columns of an m × m matrix Q from k reflections: about 4mnk - 2(m + n)k² + 4k³/3."""
    cubic = 6 * k * m * n + 2 * k**3 - 3 * k**2 * (m + n)
    return Work((cubic + 6 * k * n - 5 * k - 3 * k**2) // 3, (cubic + 3 * k * n - 3 * k * m + k) // 3)


def reflect(m: int, n: int, k: int, *, left: bool) -> Work:
    """ORMQR, k reflections applied to m × n, from the left or the right: about 4mnk - 2nk² from the left."""
    if left:
        both = 2 * m * n * k - n * k**2
        return Work(both + 2 * n * k, both + n * k)
    both = 2 * m * n * k - m * k**2 + m * k
    return Work(both + n * k - (k**2 - k) // 2, both)


def least_squares(m: int, n: int, columns: int) -> Work:
    """GELS, by QR where m ≥ n and by LQ where not: the factors, Q applied to each column, and a triangular solve."""
    long, short = max(m, n), min(m, n)
    return qr(long, short) + reflect(long, columns, short, left=True) + triangular_solve(short, columns)


def symmetric_eigenvalues(n: int, *, vectors: bool) -> int:
    """The symmetric QR algorithm: 9n³ with the vectors, 4n³/3 without (Golub and Van Loan, §8.3)."""
    return 9 * n**3 if vectors else 4 * n**3 // 3


def eigenvalues(n: int, *, vectors: bool) -> int:
    """The unsymmetric QR algorithm: 25n³ with Q and T, 10n³ for the values only (Golub and Van Loan, §7.5)."""
    return (25 if vectors else 10) * n**3


def singular_values(m: int, n: int, *, vectors: bool, full: bool = False) -> int:
    """Golub and Reinsch's SVD of m × n (Golub and Van Loan, §8.6), for m ≥ n; else that of n × m.

    4mn² - 4n³/3 for the values, 4m²n + 8mn² + 9n³ for all of U, S, V, and 14mn² + 8n³ where U has n columns, but for
    matrices nearly square, where all of U is cheaper by this count.
    """
    m, n = max(m, n), min(m, n)
    if not vectors:
        return 4 * m * n**2 - 4 * n**3 // 3
    whole = 4 * m**2 * n + 8 * m * n**2 + 9 * n**3
    return whole if full else min(whole, 14 * m * n**2 + 8 * n**3)


def singular_least_squares(m: int, n: int) -> int:
    """Least squares by Golub and Reinsch's SVD: 4mn² + 8n³ for m ≥ n, else that of n × m (Golub and Van Loan, §5.5)."""
    m, n = max(m, n), min(m, n)
    return 4 * m * n**2 + 8 * n**3
