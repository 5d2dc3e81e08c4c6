"""Small C programs without a style, from which datamodules/code_styles.py writes the programs of its authors.

A task is a list of lines; two spaces of indentation are a block. `{name}` is a variable, whose spelling the author
chooses. Lines are statements, or begin with one of these words:

    array {a}            an array of random numbers, and {size}, their count
    number {a}           a variable with a random value from 5 to 24
    int {a} = e          a variable
    each {i} e           a loop of {i} from 0 up to, but without, e
    step {a}             add one
    while e, if e, else  as in C
    show text: e         print a number
    # text               a place for a comment
"""

#: other spellings of variables, by the spelling in a task
SPELLINGS = {
    "total": ("total", "sum", "acc", "running total"),
    "size": ("size", "count", "num items", "length"),
    "values": ("values", "numbers", "data", "input values"),
    "i": ("i", "idx", "pos", "current index"),
    "j": ("j", "inner", "other", "second index"),
    "best": ("best", "largest", "top", "current best"),
    "result": ("result", "answer", "res", "final result"),
    "left": ("left", "low", "start", "lower bound"),
    "right": ("right", "high", "stop", "upper bound"),
    "middle": ("middle", "mid", "center", "mid point"),
    "target": ("target", "wanted", "key", "search value"),
    "temp": ("temp", "tmp", "swap", "saved value"),
    "number": ("number", "n", "num", "input number"),
    "digit": ("digit", "rest", "part", "last digit"),
    "hits": ("hits", "matches", "found", "match count"),
    "flag": ("flag", "ok", "is valid", "state"),
}

TASKS = {
    "sum": """
array {values}
int {total} = 0
# add up all numbers
each {i} {size}
  {total} = {total} + {values}[{i}]
# print the sum
show Sum: {total}""",
    "mean": """
array {values}
int {total} = 0
# collect the total first
each {i} {size}
  {total} = {total} + {values}[{i}]
# divide by the number of entries
int {result} = {total} / {size}
show Average: {result}""",
    "maximum": """
array {values}
# begin with the first entry
int {best} = {values}[0]
each {i} {size}
  if {values}[{i}] > {best}
    {best} = {values}[{i}]
show Maximum: {best}""",
    "minimum": """
array {values}
# keep the smallest entry seen so far
int {best} = {values}[0]
each {i} {size}
  if {values}[{i}] < {best}
    {best} = {values}[{i}]
show Minimum: {best}""",
    "evens": """
array {values}
int {hits} = 0
# count the even entries
each {i} {size}
  if {values}[{i}] % 2 == 0
    step {hits}
show Even numbers: {hits}""",
    "above": """
array {values}
number {target}
int {hits} = 0
# count entries above the threshold
each {i} {size}
  if {values}[{i}] > {target}
    step {hits}
show Above threshold: {hits}""",
    "squares": """
array {values}
int {total} = 0
# add up the squares
each {i} {size}
  {total} = {total} + {values}[{i}] * {values}[{i}]
show Sum of squares: {total}""",
    "alternating": """
array {values}
int {total} = 0
# change the sign at every second entry
each {i} {size}
  if {i} % 2 == 0
    {total} = {total} + {values}[{i}]
  else
    {total} = {total} - {values}[{i}]
show Alternating sum: {total}""",
    "range": """
array {values}
int {left} = {values}[0]
int {right} = {values}[0]
# find both ends of the range
each {i} {size}
  if {values}[{i}] < {left}
    {left} = {values}[{i}]
  if {values}[{i}] > {right}
    {right} = {values}[{i}]
show Range: {right} - {left}""",
    "linear_search": """
array {values}
number {target}
int {result} = -1
# look at every entry in turn
each {i} {size}
  if {values}[{i}] == {target}
    {result} = {i}
show Position: {result}""",
    "binary_search": """
array {values}
number {target}
int {left} = 0
int {right} = {size} - 1
int {result} = -1
# halve the interval in every round
while {left} <= {right}
  int {middle} = ({left} + {right}) / 2
  if {values}[{middle}] == {target}
    {result} = {middle}
  if {values}[{middle}] < {target}
    {left} = {middle} + 1
  else
    {right} = {middle} - 1
show Position: {result}""",
    "bubble_sort": """
array {values}
# exchange neighbours that are out of order
each {i} {size}
  each {j} {size} - 1
    if {values}[{j}] > {values}[{j} + 1]
      int {temp} = {values}[{j}]
      {values}[{j}] = {values}[{j} + 1]
      {values}[{j} + 1] = {temp}
show Smallest: {values}[0]""",
    "reverse": """
array {values}
# swap entries from both ends
each {i} {size} / 2
  int {temp} = {values}[{i}]
  {values}[{i}] = {values}[{size} - 1 - {i}]
  {values}[{size} - 1 - {i}] = {temp}
show First entry: {values}[0]""",
    "sorted": """
array {values}
int {flag} = 1
# compare every entry with the next one
each {i} {size} - 1
  if {values}[{i}] > {values}[{i} + 1]
    {flag} = 0
show Sorted: {flag}""",
    "pairs": """
array {values}
number {target}
int {hits} = 0
# compare all pairs with the target
each {i} {size}
  each {j} {i}
    if {values}[{i}] + {values}[{j}] == {target}
      step {hits}
show Pairs: {hits}""",
    "duplicates": """
array {values}
int {hits} = 0
# look for equal entries
each {i} {size}
  each {j} {i}
    if {values}[{i}] == {values}[{j}]
      step {hits}
show Duplicates: {hits}""",
    "factorial": """
number {number}
int {result} = 1
# multiply all factors
each {i} {number}
  {result} = {result} * ({i} + 1) % 1000
show Factorial: {result}""",
    "fibonacci": """
number {number}
int {left} = 0
int {right} = 1
# move both numbers forward
each {i} {number}
  int {temp} = {left} + {right}
  {left} = {right}
  {right} = {temp}
show Fibonacci: {left}""",
    "gcd": """
number {left}
number {right}
# repeat until nothing remains
while {right} != 0
  int {temp} = {left} % {right}
  {left} = {right}
  {right} = {temp}
show Divisor: {left}""",
    "digits": """
number {number}
int {total} = 0
# take off the last digit
while {number} > 0
  int {digit} = {number} % 10
  {total} = {total} + {digit}
  {number} = {number} / 10
show Digit sum: {total}""",
    "prime": """
number {number}
int {flag} = 1
# try all possible divisors
each {i} {number}
  if {i} > 1
    if {number} % {i} == 0
      {flag} = 0
show Prime: {flag}""",
    "power": """
number {number}
int {result} = 1
# double the result in every round
each {i} {number}
  {result} = {result} * 2 % 997
show Power: {result}""",
    "collatz": """
number {number}
int {hits} = 0
# follow the sequence down to one
while {number} > 1
  if {number} % 2 == 0
    {number} = {number} / 2
  else
    {number} = {number} * 3 + 1
  step {hits}
show Steps: {hits}""",
    "triangle": """
number {number}
int {total} = 0
# sum the numbers of a triangle
each {i} {number}
  each {j} {i}
    step {total}
show Triangle: {total}""",
    "divisors": """
number {number}
int {hits} = 0
# count the divisors
each {i} {number}
  if {number} % ({i} + 1) == 0
    step {hits}
show Divisors: {hits}""",
    "reverse_number": """
number {number}
int {result} = 0
# append the last digit again and again
while {number} > 0
  {result} = {result} * 10 + {number} % 10
  {number} = {number} / 10
show Reversed: {result}""",
    "bits": """
number {number}
int {hits} = 0
# test the lowest bit
while {number} > 0
  if {number} % 2 == 1
    step {hits}
  {number} = {number} / 2
show Bits: {hits}""",
    "weighted": """
array {values}
int {total} = 0
# weigh every entry by its place
each {i} {size}
  {total} = {total} + {values}[{i}] * ({i} + 1)
show Weighted sum: {total}""",
    "prefix": """
array {values}
# replace entries by running sums
each {i} {size} - 1
  {values}[{i} + 1] = {values}[{i} + 1] + {values}[{i}]
show Last prefix: {values}[{size} - 1]""",
    "second": """
array {values}
int {best} = 0
int {result} = 0
# remember the two largest entries
each {i} {size}
  if {values}[{i}] > {best}
    {result} = {best}
    {best} = {values}[{i}]
show Runner up: {result}""",
}
