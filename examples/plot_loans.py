"""
From a loan DataFrame to a report
=================================

Numbers, counts and strings in one table, and a pipeline that decides who gets a loan. What could an
applicant change on the form, and how many decisions would hold?
"""

# %%
# A pipeline as usual. One row is one application; 1 means that the loan was not paid back.
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from robustsk import CAPGD, FeatureSpace, GreedySearch, make_loans, score_adversarial
from robustsk.evaluation import robustness_report

X, y = make_loans(2400, random_state=0)
X_train, X_test, y_train, y_test = X[:2000], X[2000:2100], y[:2000], y[2000:2100]
encoder = make_column_transformer(
    (OneHotEncoder(), ["purpose", "housing"]), remainder=StandardScaler()
)
clf = make_pipeline(encoder, LogisticRegression()).fit(X_train, y_train)
X_test.head(3)

# %%
# What an applicant can change: not the age; the number of accounts only upwards, by opening one;
# never more open accounts than accounts; and one of the two answers in words.
space = FeatureSpace(scale="range", immutable=["age"], monotone={"n_total": 1}, max_changes=1)
c = space.columns
space.set_params(relations=[c.n_open <= c.n_total]).fit(X_train)

# %%
# The report: every number may move by 5 % of its range. Most of the rows that break do so by one
# word alone, which nobody checks.
attacks = {"GreedySearch": GreedySearch(), "CAPGD": CAPGD()}
report = robustness_report(
    clf, X_test, y_test, eps=0.05, space=space, attacks=attacks, red_flags=False
)
print(report)

# %%
# Some of the applications that got through by it, before and after.
X_adv = CAPGD(clf, eps=0.05, space=space, random_state=0).fit(X_train).generate(X_test, y_test)
passed = (clf.predict(X_test) == 1) & (clf.predict(X_adv) == 0)
forms = {"stated": X_test[passed].head(3), "changed": X_adv[passed].head(3)}
pd.concat(forms, names=["form", "row"]).swaplevel().sort_index(level="row", sort_remaining=False)

# %%
# Another model? Forests and boosted trees have no gradients to follow, and lean on the same words.
# With the categories frozen, the three look twice as robust as they are.
models = {
    "logistic regression": LogisticRegression(),
    "random forest": RandomForestClassifier(max_depth=6, random_state=0),
    "gradient boosting": GradientBoostingClassifier(random_state=0),
}
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for place, (name, model) in enumerate(models.items()):
    clf = make_pipeline(encoder, model).fit(X_train, y_train)
    found = [clf.score(X_test, y_test)]
    for max_changes in (0, 1):
        space.set_params(max_changes=max_changes).fit(X_train)
        attack = GreedySearch(eps=0.05, space=space, random_state=0)
        found.append(score_adversarial(clf, X_test, y_test, attack))
    print(f"{name:<20} clean {found[0]:.2f}  frozen {found[1]:.2f}  one may change {found[2]:.2f}")
    for shift, (value, shade) in enumerate(zip(found, ("0.8", "C0", "C3"), strict=True)):
        ax.bar(place + 0.27 * (shift - 1), value, 0.25, color=shade)
ax.set(xticks=range(3), xticklabels=models, ylim=(0, 1.15), ylabel="accuracy")
ax.legend(["clean", "categories frozen", "one category may change"], loc="upper center", ncols=3)
plt.show()
