-- The ten best titles, for everybody the same: evaluated once an edition, in the template as `top`.
SELECT title.name, title.year, title_score.score, title_score.votes
FROM title_score
JOIN title ON title.id = title_score.title_id
WHERE title_score.votes > 0
ORDER BY title_score.score DESC, title_score.votes DESC, title.id
LIMIT 10
